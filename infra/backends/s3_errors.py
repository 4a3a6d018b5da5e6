"""What S3's errors mean: which may pass, and what to say of those that do not; never with anything secret in it."""

from __future__ import annotations

import os
import re

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from infra.errors import AccessError, ResourceError

_ENDPOINT = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_UNREACHED = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.SSLError, boto.ProxyConnectionError)
_BROKEN = (
    *_UNREACHED,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    ResponseParserError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)
_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.TokenRetrievalError,
)
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_PASSING_CODES = {
    "SlowDown",
    "RequestTimeout",
    "RequestTimeoutException",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "BandwidthLimitExceeded",
    "InternalError",
    "ServiceUnavailable",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "OperationAborted",
    "ConditionalRequestConflict",
}
WHERE = "Check AWS_ENDPOINT_URL_S3 (http://host:port, or https://host), the network, and that the server runs"
"""What to do where nothing answers, or something that is no S3 server."""
_KEYS = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, AWS_PROFILE, or the node's or pod's role"
_RIGHTS = "The credentials lack a permission for this; docs/storage.md lists those that Calumma needs"
_ADVICE = {
    "AccessDenied": _RIGHTS,
    "403": f"{_RIGHTS}; or they are wrong",
    "400": "No reason is given for this request; often the credentials have expired, or AWS_DEFAULT_REGION is wrong",
    "AllAccessDisabled": _RIGHTS,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidToken": _KEYS,
    "ExpiredToken": f"The credentials have expired. {_KEYS}",
    "NoSuchBucket": "There is no such bucket there. Create it, correct the address, or AWS_ENDPOINT_URL_S3",
    "InvalidBucketName": "That is no name of a bucket. Correct the address",
    "RequestTimeTooSkewed": "This machine's clock is wrong. Set it",
    "PermanentRedirect": "The bucket is in another region. Set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "The bucket is in another region. Set AWS_DEFAULT_REGION",
    "NotImplemented": "The server cannot do this; docs/storage.md says what Calumma asks of one",
}
_NO_ACCESS = {
    *_ADVICE.keys() - {"NotImplemented"},
    "301",
    "404",  # of a bucket; that of an object is no error here
    "405",
    "AccountProblem",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "NotSignedUp",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
"""Codes that every request of ours would get."""
_NO_REQUEST = (*_CREDENTIALS, boto.NoRegionError, boto.InvalidRegionError, boto.ParamValidationError)
"""Errors before a request was made: without credentials or a region, or for what is no bucket's name."""


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status in _PASSING_STATUS or code_of(error) in _PASSING_CODES
    return isinstance(error, (*_BROKEN, boto.CredentialRetrievalError))  # a role's service may be busy


def failure(text: str, error: Exception, reached: bool) -> ResourceError:
    """What to raise for an error that ended an operation: AccessError where nothing else would fare better.

    ``reached``: whether the server ever answered; if none did, an address that nobody answers at is a wrong one.
    """
    lasting = isinstance(error, _NO_REQUEST) or code_of(error) in _NO_ACCESS or (is_strange(error) and not reached)
    return (AccessError if lasting else ResourceError)(text)


def code_of(error: Exception) -> str:
    """S3's error code (``NoSuchKey``; a bare status where there is none); empty for other errors."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def endpoint() -> str:
    """The server's address, without anything secret."""
    found = next((os.environ[name] for name in _ENDPOINT if os.environ.get(name)), "Amazon's endpoint")
    return re.sub(r"//[^/@]*@", "//", found)


def is_strange(error: Exception) -> bool:
    """Whether an error is what a wrong address gives; a right one may give it too."""
    unreached = (*_UNREACHED, ResponseParserError, boto.CredentialRetrievalError)
    return isinstance(error, unreached) or type(error) is boto.HTTPClientError


def said(error: Exception) -> str:
    """An error in a few words, without anything secret."""
    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "?")
        return clean(f"{code_of(error)} ({status}) {error.response.get('Error', {}).get('Message', '')}".rstrip(" ."))
    if isinstance(error, _UNREACHED):
        return f"no connection to {endpoint()} ({type(error).__name__})"
    if isinstance(error, _CREDENTIALS):
        return f"no usable credentials ({type(error).__name__})"
    if isinstance(error, ResponseParserError):
        return f"{endpoint()} does not answer like an S3 server"
    if isinstance(error, _BROKEN):
        return f"the connection to {endpoint()} broke or fell silent ({type(error).__name__})"
    return clean(f"{type(error).__name__}: {error}")


def advice(error: Exception) -> str:
    """What to do about an error that ended an operation."""
    if isinstance(error, _CREDENTIALS):
        return f"{_KEYS}; for a public bucket set AWS_NO_SIGN_REQUEST=true"
    if is_strange(error) or code_of(error) in ("404", "405"):
        return WHERE
    if code_of(error) in _ADVICE:
        return _ADVICE[code_of(error)]
    if isinstance(error, (boto.ClientError, *_BROKEN)):
        return "If the store is overloaded use fewer data_workers; run again: finished parts are kept"
    return "docs/storage.md says how to set S3 up"


def clean(text: str) -> str:
    """A text without the credentials of the environment, on one line."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if secret := os.environ.get(name):
            text = text.replace(secret, f"<{name}>")
    return " ".join(re.sub(r"//[^/@\s]*@", "//", text).split())[:500]
