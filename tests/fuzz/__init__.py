"""The edge under schemathesis: requests made of its own description, judged by it.

``python -m tests.fuzz`` (``make fuzz``) is the long run; a cut of it is in tests/attacks.
"""
