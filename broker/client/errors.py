"""What asking an edge can end in: it said no, or it said nothing."""

from __future__ import annotations

from broker.errors import DrawbridgeError


class EdgeRefused(DrawbridgeError):
    """The edge refused the call."""

    code = "edge_refused"

    def __init__(self, status: int, reason: str, message: str) -> None:
        """Keep the HTTP status and the contract's word for it, e.g. ``job_not_found``."""
        super().__init__(f"{message} ({status} {reason})")
        self.status = status
        self.reason = reason


class EdgeAway(DrawbridgeError):
    """The edge did not answer, or something else answered in its place."""

    code = "edge_away"
