"""Every refusal of the queue, as a type with the contract's code; the docstring is the message."""

from __future__ import annotations

from typing import ClassVar


class DrawbridgeError(Exception):
    """Something Drawbridge refuses or cannot do."""

    #: word of ``contract.md`` that names the refusal on the wire
    code: ClassVar[str] = "internal"

    def __init__(self, message: str | None = None) -> None:
        """Say it in words; without a message the docstring speaks."""
        super().__init__(message or (type(self).__doc__ or "").strip().partition("\n")[0])

    @property
    def message(self) -> str:
        """The sentence a client reads."""
        return str(self.args[0])


class JobNotFound(DrawbridgeError):
    """There is no such job."""

    code = "job_not_found"


class ArtifactNotFound(DrawbridgeError):
    """There is no such artifact of this job."""

    code = "artifact_not_found"


class TokenNotFound(DrawbridgeError):
    """There is no such worker token."""

    code = "worker_token_not_found"


class WorkerNotFound(TokenNotFound):
    """There is no such worker: no token was made for that name."""


class TokenConflict(DrawbridgeError):
    """This token is not in a state that allows this."""

    code = "worker_token_conflict"


class JobStateConflict(DrawbridgeError):
    """The job is not in a status that allows this call."""

    code = "job_state_conflict"


class OwnershipMismatch(DrawbridgeError):
    """The job is running under another holder."""

    code = "job_ownership_mismatch"


class LeaseLost(OwnershipMismatch):
    """The ledger has ended this lease; stop the work and publish nothing."""

    code = "lease_lost"


class NotAuthorized(DrawbridgeError):
    """This credential does not allow that."""

    code = "worker_not_authorized"


class AuthFailed(DrawbridgeError):
    """The credential is missing, malformed, unknown, expired or revoked."""

    code = "worker_auth_failed"

    def __init__(
        self, message: str | None = None, *, why: str = "malformed", credential: str | None = None
    ) -> None:
        """Refuse; ``why`` and the credential's id are for the audit, never for the caller."""
        super().__init__(message)
        self.why = why
        self.credential = credential


class InvalidPayload(DrawbridgeError):
    """The request does not fit the contract."""

    code = "invalid_queue_payload"


class InvalidRepository(InvalidPayload):
    """The repository is neither Owner/Name nor a URL that Drawbridge accepts."""


class DigestMismatch(InvalidPayload):
    """The bytes received do not have the digest that was announced."""


class UploadIncomplete(InvalidPayload):
    """Parts of the upload are missing; ask which are here, and send the others."""


class ArtifactConflict(DrawbridgeError):
    """This lease already stored other bytes under that name."""

    code = "artifact_conflict"


class ArtifactJobMismatch(DrawbridgeError):
    """The artifact belongs to another job."""

    code = "artifact_job_mismatch"


class ArtifactTooLarge(DrawbridgeError):
    """The artifact is larger than the limit."""

    code = "artifact_too_large"


class QuotaExceeded(ArtifactTooLarge):
    """The job or its worker has stored as much as it may."""


class LogFull(DrawbridgeError):
    """The job's log has as many entries as it may have, and gets no more of its worker."""

    code = "too_large"


class StorageFull(DrawbridgeError):
    """The artifact store has no room left."""

    code = "storage_full"


class Unavailable(DrawbridgeError):
    """A store behind the queue does not answer; ask again."""

    code = "unavailable"

    #: seconds to wait before the next try, for ``Retry-After``
    retry_after_s: ClassVar[int] = 1


class LedgerUnavailable(Unavailable):
    """The ledger does not answer; ask again."""


class ReservationsUnavailable(Unavailable):
    """The reservations do not answer; ask again."""


class IndexDamaged(ReservationsUnavailable):
    """A key of the reservations holds what is not its own; ask again."""


class StorageAway(Unavailable):
    """The artifact store does not answer; ask again."""

    retry_after_s = 5


class GenerationMoved(ReservationsUnavailable):
    """The reservations are being rebuilt from the ledger; ask again."""


class ConfigurationError(DrawbridgeError):
    """A setting is missing or wrong."""

    code = "configuration"
