"""For orchestrators and people: jobs of an edge over HTTP, and signatures that ask for them.

Optional: plain ``send_task`` works without it. Needs nothing but the base install; ``codex_exec``
needs Celery, which an orchestrator has.
"""

from broker.client.errors import EdgeAway, EdgeRefused
from broker.client.http import Client
from broker.client.shapes import ENDED, Artifact, Attempt, Event, Job, Why
from broker.client.signatures import Publish, codex_exec

__all__ = [
    "ENDED",
    "Artifact",
    "Attempt",
    "Client",
    "EdgeAway",
    "EdgeRefused",
    "Event",
    "Job",
    "Publish",
    "Why",
    "codex_exec",
]
