"""A proxy before the S3 server that breaks things on demand. It forwards requests as they are: signatures stay valid.

One request a connection, so that "the connection" and "the request" are the same thing. A fault is a rule that holds
for the next ``times`` requests that match:

- ``slow_down``, ``error``: 503 SlowDown or 500 InternalError instead of forwarding
- ``refuse``: the connection is cut before the request is forwarded
- ``lose``: the request is forwarded and answered, and the connection is cut before the client hears of it
- ``cut``: the answer breaks off in the middle of its body
- ``silence``: the request is forwarded, and the answer held back for ``seconds``
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import unquote

_ERRORS = {"slow_down": (503, "SlowDown", "Please reduce your request rate."), "error": (500, "InternalError", "Oops.")}


@dataclass
class Rule:
    """A fault for requests whose method and whose decoded path with query match."""

    fault: str
    method: str = ".*"
    path: str = ""
    times: int = 1
    seconds: float = 0.0
    after: int = 0
    """Matching requests that pass first."""

    def fits(self, method: str, path: str) -> bool:
        return bool(self.times and re.fullmatch(self.method, method) and re.search(self.path, path))


class Proxy:
    """Forwards to a port of the loopback interface; ``port`` is its own."""

    def __init__(self, upstream: int) -> None:
        self.upstream, self.port = upstream, 0
        self.rules: list[Rule] = []
        self.requests: list[tuple[str, str]] = []
        """(method, decoded path with query) of every request that came."""
        self.done: Counter[str] = Counter()
        """Faults that happened."""
        self._lock = threading.Lock()

    def add(self, fault: str, **how: str | float) -> None:
        """A further rule; see :class:`Rule`."""
        with self._lock:
            self.rules.append(Rule(fault, **how))  # type: ignore[arg-type]

    def reset(self) -> None:
        """Forgets rules and counts."""
        with self._lock:
            self.rules.clear()
            self.requests.clear()
            self.done.clear()

    def count(self, method: str, path: str = "") -> int:
        """How many requests of a method came whose path matches."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.requests)

    def _judge(self, method: str, path: str) -> Rule | None:
        with self._lock:
            self.requests.append((method, path))
            for rule in self.rules:
                if not rule.fits(method, path):
                    continue
                if rule.after:
                    rule.after -= 1
                    return None
                rule.times -= 1
                self.done[rule.fault] += 1
                return rule
        return None

    async def serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """One connection with one request."""
        with suppress(OSError, asyncio.IncompleteReadError):
            await self._serve(client, answer)
        with suppress(OSError):
            answer.close()

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        head = await client.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        fields = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in head.decode().split("\r\n")[1:])}
        size, waits = int(fields.get("content-length") or 0), "expect" in fields
        rule = self._judge(method, unquote(target))
        fault = rule.fault if rule else ""
        if fault in _ERRORS:
            if not waits:
                await client.readexactly(size)
            answer.write(_error(*_ERRORS[fault]))
            await answer.drain()
            return
        if fault == "refuse":
            answer.transport.abort()
            return
        server, request = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            request.write(re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n")
            if waits:  # the server asks for the body, or answers at once
                first = await server.readuntil(b"\r\n\r\n")
                if b" 100 " not in first.split(b"\r\n", 1)[0]:
                    answer.write(first + await server.read())
                    await answer.drain()
                    return
                answer.write(first)
            sent = 0
            while sent < size and (block := await client.read(min(size - sent, 1 << 16))):
                request.write(block)
                await request.drain()
                sent += len(block)
            if rule is None:
                while block := await server.read(1 << 16):
                    answer.write(block)
                    await answer.drain()
                return
            whole = await server.read()
            if fault == "silence":
                await asyncio.sleep(rule.seconds)
            elif fault == "cut":
                begin = whole.index(b"\r\n\r\n") + 4
                answer.write(whole[: begin + (len(whole) - begin) // 2])
                await answer.drain()
            answer.transport.abort() if fault in ("lose", "cut") else answer.write(whole)
        finally:
            request.close()


def _error(status: int, code: str, message: str) -> bytes:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return (head + "Connection: close\r\n\r\n" + body).encode()


@contextmanager
def proxy(upstream: int) -> Iterator[Proxy]:
    """A proxy on a thread of its own, before a port of the loopback interface."""
    made, ready, loop = Proxy(upstream), threading.Event(), asyncio.new_event_loop()

    async def listen() -> None:
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=1 << 20)
        made.port = server.sockets[0].getsockname()[1]
        ready.set()

    def work() -> None:
        loop.run_until_complete(listen())
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
