"""A job's files: its holder uploads, users list and download."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from flask import Response, request
from flask.views import MethodView
from werkzeug.exceptions import PreconditionFailed, RequestedRangeNotSatisfiable
from werkzeug.wsgi import wrap_file

from broker.errors import (
    DigestMismatch,
    DrawbridgeError,
    InvalidPayload,
    JobNotFound,
    JobStateConflict,
    NotAuthorized,
    OwnershipMismatch,
)
from broker.records import Artifact, Holder, StoredFile
from edge_api import auth
from edge_api.arguments import LimitArgs, UploadArgs
from edge_api.artifact_answers import ArtifactSchema, ArtifactsSchema
from edge_api.auth import USERS, Kind, principal
from edge_api.fields import ARTIFACT_NAME, MEDIA_TYPE
from edge_api.holding import artifact_id_of, holder_of, job_id_of
from edge_api.multipart import FilePart, Form, described
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint

blp = Blueprint("artifacts", __name__, url_prefix=f"{PREFIX}/jobs", description="Files of jobs")

#: what a browser may do with a file that a stranger's repository wrote: nothing
SANDBOX: Final = "sandbox; default-src 'none'"
_FORM: Final = described(
    ["file", "workerId", "name"],
    name={"type": "string", "pattern": ARTIFACT_NAME, "description": "relative, up to 4 parts"},
    contentType={"type": "string", "pattern": MEDIA_TYPE.regex.pattern},
)


#: what is said only once the form was read to its end and makes sense
_LATER: Final = (
    DigestMismatch,
    JobNotFound,
    JobStateConflict,
    NotAuthorized,
    OwnershipMismatch,
)


class Incoming:
    """One upload while it comes in: the file goes to the disk as it is read, checks come after."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._fields: dict[str, str] = {}
        self._seen = False
        self._stored: StoredFile | None = None
        self._type: str | None = None
        self._refusal: DrawbridgeError | None = None

    def receive(self, form: Form) -> Artifact:
        """Read the form, and name its file as an artifact of the job."""
        for part in form.parts():
            if not isinstance(part, FilePart):
                self._fields[part.name] = part.value
            elif part.name == "file" and not self._seen:
                self._seen = True
                self._type = part.content_type
                self._store(part)
        return self._name()

    def _store(self, part: FilePart) -> None:
        services = current_services()
        caller = principal()
        try:
            # Strangers' bytes do not reach the disk; their refusal waits for its turn.
            auth.check_worker_id(self._fields.get("workerId"))
            room = services.queue.upload_room(
                job_id_of(self._job_id),
                Holder(worker_id=caller.worker),
                name=self._fields.get("name"),
            )
            self._stored = services.artifacts.receive(
                part,
                max_bytes=room,
                expected_digest=self._fields.get("digest"),
            )
        except _LATER as error:
            self._refusal = error

    def _name(self) -> Artifact:
        auth.check_worker_id(self._fields.get("workerId"))
        args: dict[str, Any] = UploadArgs().load(self._fields)
        if self._refusal is not None:
            raise self._refusal
        if self._stored is None:
            raise InvalidPayload("The form has no file")
        # A digest that followed its file could not be compared before.
        if args["digest"] not in {None, self._stored.digest}:
            raise DigestMismatch
        return current_services().queue.add_artifact(
            job_id_of(self._job_id),
            holder_of(args),
            name=args["name"],
            content_type=args["content_type"] or self._type,
            file=self._stored,
        )


@blp.route("/<string:job_id>/artifacts/upload", endpoint="upload")
class Upload(MethodView):
    """The way in."""

    @blp.allow(Kind.WORKER)
    @blp.doc(requestBody=_FORM)
    @blp.response(201, ArtifactSchema)
    def post(self, job_id: str) -> Artifact:
        """Store a file of a job.

        ---
        The same bytes under the same name again are the same artifact.
        """
        settings = current_services().settings.queue
        return Incoming(job_id).receive(Form(request, file_max=settings.artifact_max_bytes))


@blp.route("/<string:job_id>/artifacts", endpoint="artifacts")
class Artifacts(MethodView):
    """The files of one job."""

    @blp.allow(*USERS)
    @blp.arguments(LimitArgs, location="query")
    @blp.response(200, ArtifactsSchema)
    def get(self, args: dict[str, Any], job_id: str) -> dict[str, Any]:
        """List a job's files, oldest first."""
        catalog = current_services().queue.catalog
        return {"items": catalog.artifacts(job_id_of(job_id), limit=args["limit"])}


@blp.route("/<string:job_id>/artifacts/<string:artifact_id>/download", endpoint="download")
class Download(MethodView):
    """The way out."""

    @blp.allow(*USERS)
    @blp.response(200, {"type": "string"}, content_type="application/octet-stream")
    def get(self, job_id: str, artifact_id: str) -> Response:
        """Download a file, or one range of it."""
        services = current_services()
        found = services.queue.catalog.artifact(job_id_of(job_id), artifact_id_of(artifact_id))
        file = services.artifacts.open(found.storage_path)
        response = Response(
            wrap_file(request.environ, file),
            mimetype="application/octet-stream",
            direct_passthrough=True,
        )
        response.content_length = found.size_bytes
        response.headers["Content-Security-Policy"] = SANDBOX
        # Its last part, which holds nothing that a header or a file system takes amiss.
        filename = found.name.rpartition("/")[2]
        response.headers.set("Content-Disposition", "attachment", filename=filename)
        response.set_etag(found.digest.removeprefix("sha256:"))
        try:
            response.make_conditional(request, accept_ranges=True, complete_length=found.size_bytes)
        except RequestedRangeNotSatisfiable:
            file.close()
            raise
        if response.status_code == HTTPStatus.PRECONDITION_FAILED:
            # as it stands the file would come along with the refusal
            file.close()
            raise PreconditionFailed
        return response
