"""The proof that the queue keeps its promises: `python -m tests.chaos`."""
