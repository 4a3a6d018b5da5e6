"""The connection to S3: settings, what is tried again and how; credentials come from the environment alone.

The client is s3fs', over aiobotocore and aiohttp. The retries of all of them are turned off, and one loop around each
operation does it all: theirs cannot resume a body that broke in the middle, they multiply where they are nested, and
``put_new`` must know whether an earlier attempt of its own may have been stored.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache
from typing import Any, TypeVar

import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from botocore import exceptions as boto

from infra.backends.s3_errors import (
    WHERE,
    advice,
    clean,
    code_of,
    endpoint,
    failure,
    is_strange,
    may_pass,
    said,
)
from infra.errors import AccessError, CalummaError

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
"""Between two pieces of an answer, not for the whole of it."""
ATTEMPTS = 10
"""With the pauses below about half a minute on average, two at most, if the server answers at once."""
FIRST_ATTEMPTS = 5
"""Where nothing ever answered: a wrong address should be told soon."""
BACKOFF_S, BACKOFF_CAP_S = 0.2, 20.0
"""The n-th pause is drawn evenly between 0 and min(cap, backoff·2^(n-1)): full jitter."""
CONNECTIONS = 64


class Refused(Exception):
    """S3 said no for a reason that the caller of :meth:`Connection.call` wants to judge."""

    def __init__(self, code: str, attempts: int) -> None:
        super().__init__(code)
        self.code, self.attempts = code, attempts


class _Session(AIOHTTPSession):  # type: ignore[misc]
    """aiohttp repeats a PUT by itself where the connection broke, once and without a word; a setting is missing."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


class Connection:
    """One process' client for one endpoint and one set of credentials. Use :func:`connection`."""

    def __init__(self) -> None:
        self.reached = False
        """Whether any server has answered yet."""
        self.buckets: set[str] = set()
        """Buckets known to exist."""
        self.conditional: set[str] = set()
        """Buckets whose server is known to honour conditions on writes."""
        self._fs = s3fs.S3FileSystem(
            anon=os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "true", "yes", "on"),
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "read_timeout": READ_TIMEOUT_S,
                "max_pool_connections": CONNECTIONS,
                "http_session_cls": _Session,
                "retries": {"mode": "standard", "total_max_attempts": 1},
            },
        )

    def submit(self, work: Coroutine[Any, Any, T]) -> Any:
        """Starts ``work`` on the client's event loop; a ``concurrent.futures.Future`` of its result."""
        return asyncio.run_coroutine_threadsafe(work, self._fs.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Does ``work`` on the client's event loop and waits for it; an interruption cancels it."""
        future = self.submit(work)
        try:
            return future.result()  # type: ignore[no-any-return]
        except BaseException:
            future.cancel()
            raise

    async def call(
        self, operation: str, url: str, do: Callable[[Any], Awaitable[T]], refusals: tuple[str, ...] = ()
    ) -> T:
        """Awaits ``do(client)`` until it succeeds or cannot; ``do`` must bear being repeated.

        Raises:
            Refused: the server answered with one of the error codes in ``refusals``.
            AccessError, ResourceError: everything else (``s3_errors.failure``); they name url, operation, attempts,
                cause and what to do.
        """
        began, attempt = time.monotonic(), 0
        while True:
            attempt += 1
            try:
                result = await do(await self._client(url))
                self.reached = True
                return result
            except CalummaError:
                raise
            except Exception as e:
                self.reached |= isinstance(e, boto.ClientError)
                if (code := code_of(e)) in refusals:
                    raise Refused(code, attempt) from None
                if attempt >= self._limit(e):
                    spent = f"{attempt} attempts in {time.monotonic() - began:.0f} s" if attempt > 1 else "1 attempt"
                    # Not chained: the texts of botocore and aiohttp may hold headers and signatures.
                    told = f"{url}: {operation} failed after {spent}: {said(e)}. {advice(e)}."
                    raise failure(told, e, self.reached) from None
            await asyncio.sleep(random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_S * 2 ** (attempt - 1))))

    async def _client(self, url: str) -> Any:
        try:
            return await self._fs.set_session()
        except ValueError as e:
            raise AccessError(
                f"{url}: {endpoint()} is not the address of a server ({clean(str(e))}). {WHERE}."
            ) from None

    def _limit(self, error: Exception) -> int:
        """How often to try in all, in view of an error."""
        if not may_pass(error):
            return 1
        return FIRST_ATTEMPTS if is_strange(error) and not self.reached else ATTEMPTS


def connection() -> Connection:
    """This process' connection for what its environment says now; shared by threads, not across a fork."""
    environment = frozenset(item for item in os.environ.items() if item[0].startswith(("AWS_", "FSSPEC_S3")))
    return _connect(os.getpid(), environment)


@lru_cache(maxsize=16)
def _connect(process: int, environment: frozenset[tuple[str, str]]) -> Connection:
    return Connection()
