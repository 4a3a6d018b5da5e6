from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.backends.aside import aside_name
from infra.errors import ResourceError
from infra.scratch import scratch_folder


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of all scratch of this test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path / f"calumma-{os.getuid()}"
    monkeypatch.undo()
    tempfile.tempdir = None


def test_it_goes_with_all_that_is_in_it(root: Path) -> None:
    with scratch_folder() as one, scratch_folder() as other:
        assert one != other
        (one / "deep").mkdir()
        (one / "deep" / "x").write_bytes(b"1")
        assert root.stat().st_mode & 0o777 == 0o700
    assert list(root.iterdir()) == []


KILLED = """
import os, signal
from infra.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "weights").write_bytes(b"1")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_and_a_living_ones_stays(root: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode == -9
    (left,) = root.iterdir()
    living = root / aside_name()
    living.mkdir()
    with scratch_folder() as folder:
        assert not left.exists()
        assert sorted(root.iterdir()) == sorted([living, folder])


def test_a_lack_of_room_is_told_before_and_while_it_is_filled(root: Path) -> None:
    with pytest.raises(ResourceError, match=rf"{root}: the weights needs .* are free\. Set TMPDIR"):
        scratch_folder(10**18, "the weights").__enter__()

    def fill(error: OSError) -> None:
        with scratch_folder(what="the weights") as folder:
            (folder / "half").write_bytes(b"1")
            raise error

    with pytest.raises(ResourceError, match=rf"{root}: the weights could not be written \(.*space.*Set TMPDIR"):
        fill(OSError(28, "No space left on device"))
    with pytest.raises(FileNotFoundError):  # the caller's own
        fill(FileNotFoundError("mine"))
    assert list(root.iterdir()) == []


def test_somebody_elses_folder_is_not_used(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match=f"{root}: somebody else made it"):
        scratch_folder().__enter__()
    root.unlink()
    root.mkdir()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    (tmp_path / f"calumma-{owner + 1}").mkdir()
    with pytest.raises(ResourceError, match=f"calumma-{owner + 1}: somebody else made it"):
        scratch_folder().__enter__()
