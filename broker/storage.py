"""The only one to know which store of files the settings mean: a folder, or a bucket."""

from __future__ import annotations

from broker.errors import ConfigurationError
from broker.files import ArtifactStore
from broker.settings import StoreSettings


def artifact_store(stores: StoreSettings) -> ArtifactStore:
    """Make the store of files; nothing is reached before it is used.

    Raises:
        ConfigurationError: its URL is wrong, or the library for it is not installed.
    """
    if stores.artifacts_url is None:
        return ArtifactStore(stores.artifacts_dir)
    try:
        from broker.bucket import BucketStore, Place  # noqa: PLC0415  an extra, for those who ask
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"DRAWBRIDGE_ARTIFACTS_URL needs {error.name}; "
            "run: pip install 'celery-drawbridge[edge,s3]'"
        ) from None
    return BucketStore(Place.parse(stores.artifacts_url), staging=stores.artifacts_dir)
