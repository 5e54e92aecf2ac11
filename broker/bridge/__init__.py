"""The bridge: a Celery worker that ingests instead of executing, and tells Celery what became."""
