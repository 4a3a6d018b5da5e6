"""Storage on S3, and on servers that speak its language: writing; reading is in ``s3_read.py``.

Beyond plain reading and writing Calumma asks a server for ``If-None-Match: *`` on PutObject and
CompleteMultipartUpload, for ``If-Match`` on ranged reads, and for multipart uploads.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import mmap
import zlib
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.backends.by_scratch import written_in_scratch
from infra.backends.s3_client import Refused
from infra.backends.s3_read import TAKEN, S3Reader, tag_of
from infra.errors import ResourceError, StoreError

CHUNK = 16 << 20
"""Larger objects are uploaded in chunks of this size: fixed, so that equal bytes give equal uploads and ETags."""
MAX_CHUNKS = 10_000
"""S3's limit; the chunk doubles until the object fits."""
UPLOADS = 4
"""Chunks of one object under way at once."""
STARTS = 3
"""How often an upload begins anew that the server has forgotten."""
STALE_S = 3600.0
"""An unfinished upload of this age belongs to nobody."""

Content = bytes | mmap.mmap
"""An object's: in memory, or a file whose pieces are read as they are sent."""

_GONE = ("NoSuchUpload", "ConditionalRequestConflict")
_NEW = {"IfNoneMatch": "*"}


class S3(S3Reader):
    """A prefix in a bucket: ``S3("bucket/run")``."""

    def put(self, name: str, data: bytes) -> None:
        self._s3.run(self._put(name, data))

    def put_new(self, name: str, data: bytes) -> bool:
        return self._s3.run(self._put_new(name, data))

    def put_file(self, name: str, path: Path) -> None:
        with open(path, "rb") as f:
            if path.stat().st_size <= CHUNK:
                self.put(name, f.read())
                return
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:  # what is not being sent is not in memory
                self._s3.run(self._put(name, data))

    def writing(self, name: str) -> AbstractContextManager[Path]:
        return written_in_scratch(self, name)

    async def _put_new(self, name: str, data: bytes) -> bool:
        won = await self._put(name, data, **_NEW)
        if won and len(data) <= CHUNK and self.bucket not in self._s3.conditional:
            await self._require_conditions(name, data)
            self._s3.conditional.add(self.bucket)
        return won

    async def _require_conditions(self, name: str, data: bytes) -> None:
        """Some servers ignore the condition, and every writer would win. Storing the same bytes once more tells."""
        try:
            await self._call("PutObject", name, TAKEN, Body=data, **_NEW)
        except Refused:
            return
        raise ResourceError(
            f"{self.url(name)}: the server ignores If-None-Match on PutObject, which keeps two runs from overwriting "
            "each other's manifests. Use a server that honours it (docs/storage.md)."
        )

    async def _put(self, name: str, data: Content, **condition: str) -> bool:
        """Stores and verifies an object; False where the condition was not met."""
        for _ in range(STARTS):
            try:
                if len(data) <= CHUNK:
                    await self._put_once(name, data[:], condition)
                else:
                    await self._put_chunks(name, data, condition)
                return True
            except Refused as e:
                # Refused at once, another was first. Refused after an attempt whose answer was lost, it may be our
                # own object (or our own finished upload) that stands in the way.
                if e.attempts > 1 and await self._holds(name, data):
                    return True
                if e.code in TAKEN:
                    return False
                # The upload is gone: swept by another run, or in conflict with another writer's. S3 wants a new one.
        raise ResourceError(
            f"{self.url(name)}: the upload of {len(data):,} bytes was aborted {STARTS} times. Does another run write "
            "to this folder? Run again: finished parts are kept."
        )

    async def _put_once(self, name: str, data: bytes, condition: dict[str, str]) -> None:
        answer = await self._call("PutObject", name, TAKEN, Body=data, **condition)
        if not self._proven(name, answer, data):
            await self._verify_size(name, len(data), tag_of(answer))

    async def _put_chunks(self, name: str, data: Content, condition: dict[str, str]) -> None:
        chunk = CHUNK
        while len(data) > chunk * MAX_CHUNKS:
            chunk *= 2
        places, slots = range(0, len(data), chunk), asyncio.Semaphore(UPLOADS)
        upload = (await self._call("CreateMultipartUpload", name))["UploadId"]

        async def send(number: int, start: int) -> dict[str, Any]:
            async with slots:
                block = data[start : start + chunk]
                answer = await self._call("UploadPart", name, _GONE, UploadId=upload, PartNumber=number, Body=block)
                self._proven(name, answer, block)
                return {"PartNumber": number, "ETag": answer["ETag"]}

        tasks = [asyncio.ensure_future(send(number, start)) for number, start in enumerate(places, 1)]
        try:
            parts = {"Parts": await asyncio.gather(*tasks)}
            done = await self._call(
                "CompleteMultipartUpload",
                name,
                (*TAKEN, *_GONE),
                UploadId=upload,
                MultipartUpload=parts,
                **condition,
            )
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(Exception):
                await asyncio.shield(self._call("AbortMultipartUpload", name, ("NoSuchUpload",), UploadId=upload))
            raise
        await self._verify_size(name, len(data), tag_of(done))

    def _proven(self, name: str, answer: dict[str, Any], data: bytes) -> bool:
        """Whether the server's answer shows that these bytes arrived: by their CRC32, or by their MD5 as the ETag."""
        if found := answer.get("ChecksumCRC32"):
            ours = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
            if found != ours:
                raise ResourceError(f"{self.url(name)}: stored with CRC32 {found} instead of {ours}. Run again.")
            return True
        return tag_of(answer) == hashlib.md5(data, usedforsecurity=False).hexdigest()

    async def _verify_size(self, name: str, size: int, tag: str) -> None:
        found = await self._info(name)
        if found is not None and (found.size == size or found.stamp != tag):  # another writer's came after ours
            return
        have = "nothing" if found is None else f"{found.size:,} bytes"
        raise ResourceError(f"{self.url(name)}: {size:,} bytes were stored and {have} are there. Run again.")

    async def _holds(self, name: str, data: Content) -> bool:
        found = await self._info(name)
        if found is None or found.size != len(data):
            return False
        try:
            for start in range(0, len(data), CHUNK):
                stop = min(start + CHUNK, len(data))
                if await self._fetch(name, start, stop, found.stamp) != data[start:stop]:
                    return False
        except (FileNotFoundError, StoreError):  # gone, or replaced meanwhile
            return False
        return True

    def delete(self, name: str) -> None:
        self._s3.run(self._call("DeleteObject", name, ("NoSuchKey",)))

    def sweep(self, folder: str) -> int:
        return self._s3.run(self._sweep(folder))

    async def _sweep(self, folder: str) -> int:
        """Aborts uploads below the folder that began long ago: their parts cost space, and show nowhere."""
        begin, count = self._key(folder), 0
        asked: dict[str, Any] = {"Bucket": self.bucket, "Prefix": f"{begin}/" if begin else ""}

        async def look(client: Any) -> Any:
            return await client.list_multipart_uploads(**asked)

        while True:
            page = await self._s3.call("ListMultipartUploads", self.url(folder), look)
            for upload in page.get("Uploads", []):
                if (datetime.now(UTC) - upload["Initiated"]).total_seconds() >= STALE_S:
                    with suppress(Refused):  # somebody else did
                        await self._call(
                            "AbortMultipartUpload",
                            "",
                            ("NoSuchUpload",),
                            Key=upload["Key"],
                            UploadId=upload["UploadId"],
                        )
                        count += 1
            if not page.get("IsTruncated"):
                return count
            asked |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
