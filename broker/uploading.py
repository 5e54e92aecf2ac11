"""The order of writes of a file that comes in parts: announced, filled, put together.

An upload belongs to one lease and says beforehand what the file weighs and its digest, so that its
room is taken before a byte is read, and a part is told by its number alone: parts cannot overlap,
and what lies where is never a client's word. Parts lie in the artifact store until the whole is
there; then they go, and the file is an artifact like any other.

Every call may come twice; each docstring says what the second gives.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from broker.errors import (
    ArtifactConflict,
    ArtifactNotFound,
    ArtifactTooLarge,
    DigestMismatch,
    InvalidPayload,
    QuotaExceeded,
    UploadIncomplete,
)
from broker.files import ArtifactStore
from broker.holding import Holding
from broker.ledger import artifacts, parts, uploads
from broker.ledger.parts import Part, Upload
from broker.records import Artifact, Holder
from broker.streams import Stream

log = logging.getLogger(__name__)

#: an upload that is not whole by then never will be
UPLOAD_AGE: Final = timedelta(days=1)
#: parts named in one refusal
NAMED_MAX: Final = 20


class Uploading:
    """Files in parts, by whoever holds a job; threads may share one."""

    def __init__(self, holding: Holding) -> None:
        """Stand on what a holder may say of its job."""
        self._holding = holding
        self._ledger = holding.ledger

    def begin(
        self,
        job_id: str,
        holder: Holder,
        *,
        name: str,
        content_type: str | None,
        digest: str,
        size_bytes: int,
    ) -> Upload:
        """Announce a file and take its room; again gives the same upload, with what is here.

        Raises:
            ArtifactConflict: this lease stored other bytes under that name.
            ArtifactTooLarge: it is larger than any file may be.
            QuotaExceeded: the job or its worker has no room for it.
        """
        settings, now = self._holding.settings, self._holding.clock.now()
        if size_bytes > settings.artifact_max_bytes:
            raise ArtifactTooLarge(
                f"The artifact is larger than {settings.artifact_max_bytes} bytes"
            )
        with self._ledger.write() as conn:
            job = uploads.may_upload(conn, job_id, holder, lock=True)
            upload = parts.find(conn, job, name=name, digest=digest)
            if upload is None:
                stored = artifacts.find(conn, job, name)
                if stored is not None and stored.digest != digest:
                    raise ArtifactConflict
                if stored is None and size_bytes > uploads.room(
                    conn, job, holder, settings=settings, now=now
                ):
                    raise QuotaExceeded
                upload = parts.begin(
                    conn, job, name=name, content_type=content_type, digest=digest,
                    size_bytes=size_bytes, now=now,
                    artifact_id=None if stored is None else stored.id,
                )  # fmt: skip
            elif upload.size_bytes != size_bytes:
                raise InvalidPayload("sizeBytes is not what this file was announced with")
        self._holding.take_up(job, holder)
        return upload

    def get(self, job_id: str, holder: Holder, upload_id: str) -> Upload:
        """Return an upload of this lease, with the parts that are here."""
        with self._ledger.read() as conn:
            return parts.get(conn, uploads.may_upload(conn, job_id, holder), upload_id)

    def receive(
        self,
        job_id: str,
        holder: Holder,
        upload_id: str,
        number: int,
        *,
        stream: Stream,
        digest: str,
        files: ArtifactStore,
    ) -> Part:
        """Store a part; the same part again gives the same answer, and nothing is read of it.

        Raises:
            ArtifactConflict: that part is here, with other bytes.
            DigestMismatch: the bytes are not those announced.
            InvalidPayload: the upload has no such part, or it has another size.
        """
        upload = self.get(job_id, holder, upload_id)
        size = upload.size_of(number)
        if size is None:
            raise InvalidPayload(f"The upload has parts 1 to {upload.count}")
        part = Part(number=number, size_bytes=size, digest=digest)
        for known in upload.parts:
            if known.number == number:
                if known.digest != digest:
                    raise ArtifactConflict("The upload has other bytes as that part")
                return known
        if upload.artifact is not None:
            return part
        files.receive_part(stream, upload=upload_id, number=number, size=size, digest=digest)
        try:
            with self._ledger.write() as conn:
                job = uploads.may_upload(conn, job_id, holder, lock=True)
                return parts.add_part(conn, parts.get(conn, job, upload_id), part)
        except ArtifactConflict:
            # Two sent that part at once, and other bytes: one of them was first.
            files.drop_part(upload_id, number=number, digest=digest)
            raise

    def finish(
        self, job_id: str, holder: Holder, upload_id: str, *, files: ArtifactStore
    ) -> Artifact:
        """Put the parts together as an artifact of the job; again gives the same artifact.

        Raises:
            UploadIncomplete: parts are missing.
            DigestMismatch: the whole is not what was announced; its parts must be sent anew.
        """
        upload = self.get(job_id, holder, upload_id)
        if upload.artifact is not None:
            return upload.artifact
        if missing := upload.missing():
            named = ", ".join(map(str, missing[:NAMED_MAX]))
            more = ", …" if len(missing) > NAMED_MAX else ""
            raise UploadIncomplete(f"Parts are missing: {named}{more}")
        whole = files.joined(upload.id, [(part.number, part.digest) for part in upload.parts])
        try:
            with whole:
                file = files.receive(
                    whole, max_bytes=upload.size_bytes, expected_digest=upload.digest
                )
        except (ArtifactNotFound, DigestMismatch) as error:
            return self._after_all(job_id, holder, upload, error, files)
        artifact = self._holding.add_artifact(
            job_id, holder, name=upload.name, content_type=upload.content_type, file=file,
            upload_id=upload.id,
        )  # fmt: skip
        files.drop_upload(upload.id)
        return artifact

    def _after_all(
        self,
        job_id: str,
        holder: Holder,
        upload: Upload,
        error: ArtifactNotFound | DigestMismatch,
        files: ArtifactStore,
    ) -> Artifact:
        """Answer when the parts are not the whole: it was finished beside us, or begins anew."""
        with self._ledger.write() as conn:
            job = uploads.may_upload(conn, job_id, holder, lock=True)
            now = parts.get(conn, job, upload.id)
            if now.artifact is not None:
                return now.artifact
            parts.forget_parts(conn, upload.id)
        files.drop_upload(upload.id)
        log.warning("parts lost: %s", error, extra={"action": "upload", "job_id": job_id})
        if isinstance(error, ArtifactNotFound):
            raise UploadIncomplete from error
        raise error

    def prune(self, files: ArtifactStore, *, limit: int) -> int:
        """Forget uploads that were never finished, and their parts; returns how many went."""
        before, removed = self._holding.clock.now() - UPLOAD_AGE, 0
        expired = ["first"]
        while expired:
            with self._ledger.write() as conn:
                expired = parts.expire(conn, before=before, limit=limit)
            for upload_id in expired:
                files.drop_upload(upload_id)
            removed += len(expired)
        return removed + self._prune_strays(files, before)

    def _prune_strays(self, files: ArtifactStore, before: datetime) -> int:
        found = list(files.uploads(before=before))
        with self._ledger.read() as conn:
            known = parts.known(conn, found)
        strays = [upload_id for upload_id in found if upload_id not in known]
        for upload_id in strays:
            files.drop_upload(upload_id)
        return len(strays)
