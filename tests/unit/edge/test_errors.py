"""Every refusal has its status; a refusal without one would be a crash."""

from http import HTTPStatus

import pytest

from broker import errors as queue_errors
from broker.errors import DrawbridgeError
from edge_api import errors, line
from edge_api.errors import code_of, status_of

#: the contract's table, and no other copy of it
CONTRACT = {
    400: {"malformed_json", "malformed_form"},
    401: {"worker_auth_failed", "unauthorized"},
    403: {"worker_not_authorized"},
    404: {"job_not_found", "artifact_not_found", "worker_token_not_found"},
    # worker_token_conflict is of a route of ours
    409: {"job_state_conflict", "job_ownership_mismatch", "lease_lost", "artifact_conflict",
          "artifact_job_mismatch", "worker_token_conflict"},
    411: {"length_required"},
    413: {"too_large", "artifact_too_large"},
    415: {"unsupported_media_type"},
    422: {"invalid_queue_payload", "invalid_status_filter"},
    429: {"rate_limited"},
    500: {"internal", "configuration"},
    503: {"unavailable"},
    507: {"storage_full"},
}  # fmt: skip


def refusals() -> list[type[DrawbridgeError]]:
    return [
        kind
        for module in (queue_errors, errors, line)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, DrawbridgeError)
    ]


@pytest.mark.parametrize("kind", refusals())
def test_every_refusal_is_in_the_contract(kind: type[DrawbridgeError]) -> None:
    assert kind.code in CONTRACT[status_of(kind())]
    assert kind().message


def test_every_code_of_the_contract_is_somebodys() -> None:
    codes = {kind.code for kind in refusals()}
    assert codes >= {code for codes in CONTRACT.values() for code in codes}


def test_http_has_words_of_its_own() -> None:
    assert code_of(HTTPStatus.METHOD_NOT_ALLOWED) == "method_not_allowed"
    assert code_of(HTTPStatus.REQUEST_URI_TOO_LONG) == "uri_too_long"
    assert code_of(HTTPStatus.REQUEST_ENTITY_TOO_LARGE) == "too_large"
