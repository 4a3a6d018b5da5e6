from __future__ import annotations

import re

import pytest
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from infra.backends.s3_errors import advice, code_of, failure, may_pass, said
from infra.errors import AccessError, ResourceError


def answer(code: str, status: int, message: str = "no") -> boto.ClientError:
    return boto.ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )


@pytest.mark.parametrize(
    "error",
    [
        answer("SlowDown", 503),
        answer("InternalError", 500),
        answer("RequestTimeout", 400),
        answer("BadDigest", 400),
        answer("ConditionalRequestConflict", 409),
        answer("502", 502),
        boto.ReadTimeoutError(endpoint_url="x"),
        boto.ConnectTimeoutError(endpoint_url="x"),
        boto.ConnectionClosedError(endpoint_url="x"),
        boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        boto.CredentialRetrievalError(provider="x", error_msg="busy"),
        ResponseParserError("x"),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
def test_what_may_pass(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    ("error", "todo"),
    [
        (answer("AccessDenied", 403), "lack a permission"),
        (answer("403", 403), "lack a permission.*or they are wrong"),
        (answer("400", 400), "expired"),
        (answer("ExpiredToken", 400), "have expired.*AWS_SESSION_TOKEN"),
        (answer("NoSuchBucket", 404), "no such bucket"),
        (answer("404", 404), "AWS_ENDPOINT_URL_S3"),
        (answer("PermanentRedirect", 301), "AWS_DEFAULT_REGION"),
        (answer("RequestTimeTooSkewed", 403), "clock"),
        (boto.NoCredentialsError(), "AWS_PROFILE"),
        (boto.ParamValidationError(report="x"), "docs/storage.md"),
    ],
)
def test_what_does_not_pass_comes_with_advice(error: Exception, todo: str) -> None:
    assert not may_pass(error)
    assert re.search(todo, advice(error))


def test_nothing_secret_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDSEEN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://me:mine@s3.example.org")
    texts = [
        said(answer("Odd", 400, "key AKIDSEEN with hush at http://me:mine@host/x is\n odd")),
        said(boto.EndpointConnectionError(endpoint_url="https://me:mine@s3.example.org")),
        said(ValueError("hush")),
    ]
    assert texts[0] == "Odd (400) key <AWS_ACCESS_KEY_ID> with <AWS_SECRET_ACCESS_KEY> at http://host/x is odd"
    assert not any(secret in text for text in texts for secret in ("AKIDSEEN", "hush", "mine"))
    assert "https://s3.example.org" in texts[1]
    assert code_of(ValueError()) == ""


@pytest.mark.parametrize(
    "error",
    [
        answer("AccessDenied", 403),
        answer("403", 403),
        answer("400", 400),
        answer("ExpiredToken", 400),
        answer("InvalidAccessKeyId", 403),
        answer("SignatureDoesNotMatch", 403),
        answer("NoSuchBucket", 404),
        answer("PermanentRedirect", 301),
        answer("RequestTimeTooSkewed", 403),
        boto.NoCredentialsError(),
        boto.CredentialRetrievalError(provider="x", error_msg="busy"),
        boto.ProfileNotFound(profile="x"),
        boto.ParamValidationError(report="no name of a bucket"),
    ],
)
def test_what_every_request_would_meet_is_an_access_error(error: Exception) -> None:
    assert type(failure("told", error, reached=True)) is AccessError
    assert str(failure("told", error, reached=True)) == "told"


@pytest.mark.parametrize(
    "error",
    [
        answer("SlowDown", 503),
        answer("InternalError", 500),
        answer("InvalidObjectState", 403),  # one object, in an archive
        answer("NotImplemented", 501),
        boto.ReadTimeoutError(endpoint_url="x"),
        boto.ConnectionClosedError(endpoint_url="x"),
        ConnectionResetError(),
    ],
)
def test_what_one_request_met_is_not(error: Exception) -> None:
    assert type(failure("told", error, reached=True)) is ResourceError
    assert type(failure("told", error, reached=False)) is ResourceError


def test_a_server_that_falls_silent_is_no_wrong_address() -> None:
    for error in (boto.EndpointConnectionError(endpoint_url="x"), boto.ConnectTimeoutError(endpoint_url="x")):
        assert type(failure("told", error, reached=True)) is ResourceError
        assert type(failure("told", error, reached=False)) is AccessError
