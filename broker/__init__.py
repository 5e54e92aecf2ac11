"""The queue itself, and its Celery side."""
