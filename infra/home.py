"""A work folder's local side: what must lie on this machine even where the work folder itself is on S3.

That is the run's lock, the records of the helpers it started (a local Ray, a Prefect server) and Prefect's database.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from infra.errors import ResourceError

_CUT_URL = re.compile(r"[a-z0-9]+:/?(?!/)[^/]*(/|$)")


def is_remote(workdir: str) -> bool:
    """Whether a work folder's name is a URL such as ``s3://bucket/run``."""
    return "://" in workdir


def whole_name(workdir: str) -> str:
    """A work folder's name as jobs that run elsewhere understand it: a URL as it is, a path made absolute.

    ResourceError for what is neither, such as ``s3:/bucket/run``.
    """
    if _CUT_URL.match(workdir):
        raise ResourceError(f"work folder {workdir}: expected a folder, or s3://BUCKET/PREFIX with two slashes")
    return workdir.rstrip("/") if is_remote(workdir) else str(Path(workdir).absolute())


def local_side(workdir: str) -> Path:
    """The work folder itself; for one on S3 a folder of this user's, ``~/.local/state/calumma/NAME-HASH``."""
    if not is_remote(workdir):
        return Path(workdir).absolute()
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = whole_name(workdir)
    return state / "calumma" / f"{name.rsplit('/', 1)[-1]}-{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}"
