"""Reading and listing on S3, and on servers that speak its language."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any

from infra.backends.base import FileInfo, is_hidden
from infra.backends.s3_client import Connection, Refused, connection
from infra.errors import AccessError, ResourceError, StoreError

READS = 32
"""Small objects read at once by ``get_many``."""
AHEAD = 4 << 20
"""What an open file reads ahead, and holds."""
SORTED_SERVERS = ("AmazonS3", "MinIO", "Ceph")
"""Servers known to list keys in the order of their UTF-8 bytes, by the Server header of their answers. From others
(and Amazon's directory buckets) a listing is held whole and sorted."""

MISSING = ("NoSuchKey", "404")
TAKEN = ("PreconditionFailed", "412")


class S3Reader:
    """A prefix in a bucket: ``S3("bucket/run")``."""

    def __init__(self, root: str) -> None:
        self.bucket, _, self.prefix = root.strip("/").partition("/")
        if not self.bucket:
            raise StoreError(f"s3://{root}: no bucket is named. Write s3://bucket/folder")
        self._held: tuple[int, Connection] | None = None

    def url(self, name: str) -> str:
        return f"s3://{self.bucket}/{self._key(name)}".rstrip("/")

    def _key(self, name: str) -> str:
        return "/".join(filter(None, (self.prefix, name)))

    @property
    def _s3(self) -> Connection:
        if self._held is None or self._held[0] != os.getpid():  # a connection does not survive a fork
            self._held = (os.getpid(), connection())
        return self._held[1]

    async def _call(self, operation: str, name: str, refusals: tuple[str, ...] = (), **arguments: Any) -> Any:
        """One request about one object."""
        method = "".join(f"_{c.lower()}" if c.isupper() else c for c in operation).lstrip("_")
        arguments = {"Bucket": self.bucket, "Key": self._key(name), **arguments}
        return await self._s3.call(operation, self.url(name), lambda c: getattr(c, method)(**arguments), refusals)

    # -- reading

    def info(self, name: str) -> FileInfo | None:
        return self._s3.run(self._info(name)) if self._key(name) else None

    async def _info(self, name: str) -> FileInfo | None:
        try:
            head = await self._call("HeadObject", name, MISSING)
        except Refused:
            await self._require_bucket(name)
            return None
        return FileInfo(name, int(head["ContentLength"]), tag_of(head))

    async def _require_bucket(self, name: str) -> None:
        """An answer to HeadObject does not tell a missing object from a missing bucket."""
        if self.bucket in self._s3.buckets:
            return
        try:
            await self._s3.call(
                "HeadBucket", self.url(name), lambda c: c.head_bucket(Bucket=self.bucket), ("404", "403")
            )
        except Refused as e:
            if e.code == "404":  # 403: the bucket is there, and not ours to look at
                raise AccessError(
                    f"s3://{self.bucket}: no such bucket. Create it, correct the address, or AWS_ENDPOINT_URL_S3."
                ) from None
        self._s3.buckets.add(self.bucket)

    def get(self, name: str) -> bytes:
        return self._s3.run(self._fetch(name))

    def get_many(self, names: Iterable[str]) -> Iterator[bytes]:
        waiting, todo = deque[Any](), iter(names)
        try:
            waiting.extend(self._s3.submit(self._fetch(name)) for name in islice(todo, READS))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(self._s3.submit(self._fetch(name)) for name in islice(todo, 1))
        finally:
            for future in waiting:
                future.cancel()

    def range(self, name: str, start: int, stop: int) -> bytes:
        if stop <= start:
            if self.info(name) is None:
                raise FileNotFoundError(name)
            return b""
        return self._s3.run(self._fetch(name, start, stop))

    async def _fetch(self, name: str, start: int = 0, stop: int | None = None, version: str = "") -> bytes:
        """The bytes from ``start`` to ``stop``. Where the connection breaks, the next attempt goes on from there.

        ``version`` is the ETag that the object must have; without it, that of the first answer.
        """
        blocks: list[bytes] = []
        tag = version

        async def read(client: Any) -> None:
            nonlocal tag
            begin = start + sum(map(len, blocks))
            if stop is not None and begin >= stop:
                return
            asked: dict[str, str] = {"IfMatch": f'"{tag}"'} if tag else {}
            if begin or stop is not None:
                asked["Range"] = f"bytes={begin}-{'' if stop is None else stop - 1}"
            answer = await client.get_object(Bucket=self.bucket, Key=self._key(name), **asked)
            if "Range" in asked and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
                raise ResourceError(f"{self.url(name)}: the server ignores Range requests; Calumma needs them.")
            tag = tag or tag_of(answer)
            async with answer["Body"] as body:
                while block := await body.read(1 << 20):
                    blocks.append(block)

        refusals = ("NoSuchKey", "InvalidRange", "416", *TAKEN)
        for _ in range(3):
            try:
                await self._s3.call("GetObject", self.url(name), read, refusals)
                self._s3.buckets.add(self.bucket)
                return b"".join(blocks)
            except Refused as e:
                if e.code == "NoSuchKey":
                    raise FileNotFoundError(name) from None
                if e.code not in TAKEN:  # it ends before ``start``
                    return b"".join(blocks)
                if version:
                    break
                blocks.clear()  # replaced between two attempts: read the new one
                tag = ""
        raise StoreError(f"{self.url(name)}: changed while it was being read. Run again once nobody writes to it.")

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        if (found := self.info(name)) is None:
            raise FileNotFoundError(name)
        with io.BufferedReader(_Ranged(self, found), AHEAD) as f:
            yield f

    def files(self, folder: str) -> Iterator[FileInfo]:
        for page in self._pages(folder, Delimiter="/"):
            yield from self._files(page)

    def find(self, folder: str) -> Iterator[FileInfo]:
        start = len(f"{folder}/") if folder else 0
        shown: list[FileInfo] = []
        last = ""
        for page in self._pages(folder):
            files = (f for f in self._files(page) if not is_hidden(f.name[start:]))
            server = str(page["ResponseMetadata"].get("HTTPHeaders", {}).get("server", ""))
            if not server.startswith(SORTED_SERVERS) or self.bucket.endswith("--x-s3"):
                shown.extend(files)
                continue
            for f in files:
                if f.name < last:
                    raise ResourceError(f"{self.url(folder)}: {server} lists {f.name!r} after {last!r}, out of order.")
                last = f.name
                yield f
        yield from sorted(shown, key=lambda f: f.name)

    def _pages(self, folder: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """The pages of a listing, each asked for when it is wanted."""
        begin = self._key(folder)
        arguments |= {"Bucket": self.bucket, "Prefix": f"{begin}/" if begin else "", "MaxKeys": 1000}
        while True:
            work = self._s3.call("ListObjectsV2", self.url(folder), lambda c: c.list_objects_v2(**arguments))
            page: dict[str, Any] = self._s3.run(work)
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def _files(self, page: dict[str, Any]) -> Iterator[FileInfo]:
        """The files of a page; objects that only mark a folder are none."""
        cut = len(self.prefix) + 1 if self.prefix else 0
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):
                yield FileInfo(entry["Key"][cut:], int(entry["Size"]), tag_of(entry))


class _Ranged(io.RawIOBase):
    """One version of an object as a file that reads what is asked; buffered above."""

    def __init__(self, store: S3Reader, found: FileInfo) -> None:
        self._store, self._found, self._place = store, found, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._found.size}[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        block = self._read(min(len(buffer), self._found.size - self._place))
        buffer[: len(block)] = block
        return len(block)

    def readall(self) -> bytes:
        return self._read(self._found.size - self._place)

    def _read(self, size: int) -> bytes:
        if size <= 0:
            return b""
        work = self._store._fetch(self._found.name, self._place, self._place + size, self._found.stamp)
        block = self._store._s3.run(work)
        self._place += len(block)
        return block


def tag_of(answer: dict[str, Any]) -> str:
    """The ETag of an answer or a listing's entry, without quotes."""
    return str(answer.get("ETag", "")).strip('"')
