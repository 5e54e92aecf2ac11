"""What clients get of the files of a job, whole or in parts."""

from __future__ import annotations

from marshmallow import fields

from edge_api.answers import Answer
from edge_api.fields import Moment


class FileSchema(Answer):
    """What is told of any file of a job."""

    id = fields.UUID()
    job_id = fields.UUID()
    name = fields.String()
    content_type = fields.String(allow_none=True)
    size_bytes = fields.Integer()
    digest = fields.String()
    created_at = Moment()
    attempt = fields.Integer()
    fence = fields.Integer()


class ArtifactSchema(FileSchema):
    """A stored file of a job."""

    storage_path = fields.String()


class PartSchema(Answer):
    """A part of an upload that is here."""

    number = fields.Integer()
    size_bytes = fields.Integer()
    digest = fields.String()


class UploadSchema(FileSchema):
    """A file that comes in parts, and which of them are here."""

    part_bytes = fields.Integer(
        metadata={"description": "what every part weighs but the last, which has the rest"}
    )
    parts = fields.List(fields.Nested(PartSchema))
    artifact = fields.Nested(
        ArtifactSchema, allow_none=True, metadata={"description": "null until it is whole"}
    )


class ArtifactsSchema(Answer):
    """The stored files of a job."""

    items = fields.List(fields.Nested(ArtifactSchema))
