from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import toy


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which the whole toy pipeline ran once, undisturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "work"
    output = toy.run(workdir)
    (workdir.parent / "output.txt").write_text(output)
    return workdir
