"""A real S3 server for tests: SeaweedFS as a process of its own, signatures enforced, data in a folder of the test."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.processes import free_ports

ACCESS, SECRET = "AKIDCALUMMATEST", "calumma-test-secret"
READER_ACCESS, READER_SECRET = "AKIDCALUMMAREAD", "calumma-read-secret"
FLAGS = [f"-{part}.port{kind}" for part in ("s3", "master", "volume", "filer", "admin") for kind in ("", ".grpc")]
_IDENTITIES = {
    "identities": [
        {
            "name": "writer",
            "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER_ACCESS, "secretKey": READER_SECRET}],
            "actions": ["Read", "List"],
        },
    ]
}


@dataclass(frozen=True)
class Server:
    """A running server: its port on the loopback interface, and its bucket."""

    port: int
    bucket: str
    filer_port: int

    def environment(self, port: int | None = None) -> dict[str, str]:
        """What a process needs in its environment to use the server, or a proxy before it."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port or self.port}",
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def fill(self, keys: Iterable[str]) -> None:
        """Creates many one-byte objects by the server's own back door: three times as fast as through S3."""
        connection = http.client.HTTPConnection("127.0.0.1", self.filer_port, timeout=30)
        for key in keys:
            connection.request("PUT", f"/buckets/{self.bucket}/{key}", body=b"x")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 201
        connection.close()


@contextmanager
def s3_server(folder: Path, bucket: str = "calumma-test") -> Iterator[Server]:
    """Starts a server over a folder, creates a bucket, and kills the server at the end (SIGTERM may hang)."""
    folder.mkdir(parents=True, exist_ok=True)
    identities = folder / "identities.json"
    identities.write_text(json.dumps(_IDENTITIES))
    log = folder / "log.txt"
    for _ in range(3):  # a free port may be taken before the server gets to it
        ports = free_ports(len(FLAGS))
        port = ports[0]
        process = _start(folder, identities, log, ports)
        try:
            if _answers(process, port):
                _create_bucket(port, bucket)
                yield Server(port, bucket, filer_port=ports[FLAGS.index("-filer.port")])
                return
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    raise RuntimeError(f"the S3 server did not start: {log.read_text()[-2000:]}")


def _start(folder: Path, identities: Path, log: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    with open(log, "ab") as out:
        return subprocess.Popen(
            [
                str(Path(sys.executable).parent / "weed"),
                "mini",
                f"-dir={data}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-master.telemetry=false",
                "-admin.ui=false",
                "-webdav=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.autoCreateBucket=false",
                f"-s3.config={identities}",
                *(f"{flag}={port}" for flag, port in zip(FLAGS, ports, strict=True)),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )


def _answers(process: subprocess.Popen[bytes], port: int, patience_s: float = 30) -> bool:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
            return True
        except OSError:
            time.sleep(0.05)
    return False


def _create_bucket(port: int, bucket: str) -> None:
    import botocore.session

    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=bucket)
    client.close()
