"""Files too large for one call: announced, sent part by part, put together."""

from __future__ import annotations

from typing import Any, Final

from flask import request
from flask.views import MethodView
from marshmallow import ValidationError

from broker.errors import DrawbridgeError, InvalidPayload
from broker.ledger.parts import PART_BYTES, PARTS_MAX, Part, Upload
from broker.records import Artifact
from edge_api import auth
from edge_api.arguments import BeginUploadArgs, HolderArgs, LeaseArgs, PartArgs
from edge_api.artifact_answers import ArtifactSchema, PartSchema, UploadSchema
from edge_api.auth import Kind
from edge_api.holding import holder_of, job_id_of, part_number_of, upload_id_of
from edge_api.multipart import FilePart, Form, described
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint

blp = Blueprint(
    "uploads", __name__, url_prefix=f"{PREFIX}/jobs", description="Files of jobs, in parts"
)

_FORM: Final = described(["workerId", "digest", "file"])


@blp.route("/<string:job_id>/artifacts/uploads", endpoint="uploads")
class Uploads(MethodView):
    """The files that come in parts."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(BeginUploadArgs)
    @blp.response(201, UploadSchema)
    def post(self, args: dict[str, Any], job_id: str) -> Upload:
        """Announce a file that comes in parts; its room is taken now.

        ---
        A repeat gives the same upload, and says which parts of it are here.
        """
        return current_services().queue.uploads.begin(
            job_id_of(job_id),
            holder_of(args),
            name=args["name"],
            content_type=args["content_type"],
            digest=args["digest"],
            size_bytes=args["size_bytes"],
        )


@blp.route("/<string:job_id>/artifacts/uploads/<string:upload_id>", endpoint="upload")
class OneUpload(MethodView):
    """One file that comes in parts."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(LeaseArgs, location="query")
    @blp.response(200, UploadSchema)
    def get(self, args: dict[str, Any], job_id: str, upload_id: str) -> Upload:
        """Say which parts are here."""
        uploads = current_services().queue.uploads
        return uploads.get(job_id_of(job_id), holder_of(args), upload_id_of(upload_id))


@blp.route(
    "/<string:job_id>/artifacts/uploads/<string:upload_id>/parts/<string:number>", endpoint="part"
)
class OnePart(MethodView):
    """One part of a file."""

    @blp.allow(Kind.WORKER)
    @blp.doc(requestBody=_FORM)
    @blp.response(201, PartSchema)
    def post(self, job_id: str, upload_id: str, number: str) -> Part:
        """Send a part; the fields come before the file.

        ---
        The same part again is answered alike.
        """
        settings = current_services().settings.queue
        most = max(PART_BYTES, -(-settings.artifact_max_bytes // PARTS_MAX))
        fields: dict[str, str] = {}
        stored: Part | DrawbridgeError | ValidationError | None = None
        for part in Form(request, file_max=most).parts():
            if not isinstance(part, FilePart):
                fields[part.name] = part.value
            elif part.name == "file" and stored is None:
                try:
                    stored = _received(job_id, upload_id, number, fields=fields, file=part)
                except (DrawbridgeError, ValidationError) as error:
                    # Said at the end: who still sends reads no answer.
                    stored = error
        if isinstance(stored, Part):
            return stored
        auth.check_worker_id(fields.get("workerId"))
        raise stored or InvalidPayload("The form has no file")


def _received(
    job_id: str, upload_id: str, number: str, *, fields: dict[str, str], file: FilePart
) -> Part:
    auth.check_worker_id(fields.get("workerId"))
    args: dict[str, Any] = PartArgs().load(fields)
    services = current_services()
    return services.queue.uploads.receive(
        job_id_of(job_id),
        holder_of(args),
        upload_id_of(upload_id),
        part_number_of(number),
        stream=file,
        digest=args["digest"],
        files=services.artifacts,
    )


@blp.route("/<string:job_id>/artifacts/uploads/<string:upload_id>/complete", endpoint="finish")
class Finish(MethodView):
    """The end of an upload."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(HolderArgs)
    @blp.response(201, ArtifactSchema)
    def post(self, args: dict[str, Any], job_id: str, upload_id: str) -> Artifact:
        """Put the parts together.

        ---
        A repeat gives the same artifact. 422 when parts are missing.
        """
        services = current_services()
        return services.queue.uploads.finish(
            job_id_of(job_id), holder_of(args), upload_id_of(upload_id), files=services.artifacts
        )
