"""The data plane with its sources and its work folder on a real S3 server that falters."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kill_campaign import write_recipe
from infra.storage import Storage
from infra.store.commit import PARTS, load_parts, load_step
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe, load_recipe
from tasks.steps import STORES
from tests.s3.proxy import Proxy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def calumma(*words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def tables(workdir: str, recipe: Recipe) -> dict[str, str]:
    """sha256 of every table of the four stores, by step and name."""
    found, prints = {}, fingerprints(recipe, Storage(workdir))
    for step in STORES:
        store = Storage(workdir).sub(folder_of(step, prints[step]))
        for name in store.list(PARTS, ".parquet"):
            found[f"{step}/{name}"] = hashlib.sha256(store.get(f"{PARTS}/{name}")).hexdigest()
    return found


def test_on_s3_as_on_a_disk(s3_bucket: str, faulty_s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    recipe_file = write_recipe(tmp_path / "corpus", 240, 0)
    calumma("run", str(recipe_file), "--workdir", str(tmp_path / "disk"), "--to", "tokenize")

    bucket = Storage(s3_bucket)
    for path in sorted(p for p in (tmp_path / "corpus").rglob("*") if p.is_file()):
        bucket.put(path.relative_to(tmp_path / "corpus").as_posix(), path.read_bytes())
    on_disk = load_recipe(recipe_file)
    sets = [w for s in on_disk.sources for w in ("--set", f"sources.{s.name}.path={s3_bucket}/{s.path}")]
    bursts = [fault for _ in range(2) for fault in ("slow_down", "error", "lose", "cut", "refuse")]
    for fault in bursts:
        faulty_s3.add(fault, times=3, after=30)
    workdir = f"{s3_bucket}/work"
    output = calumma("run", str(recipe_file), "--workdir", workdir, "--to", "tokenize", *sets)
    assert faulty_s3.done == dict.fromkeys(bursts, 6), output

    on_s3 = load_recipe(recipe_file, sets[1::2])
    assert tables(workdir, on_s3) == tables(str(tmp_path / "disk"), on_disk)
    for step in STORES:
        store = Storage(workdir).sub(folder_of(step, fingerprints(on_s3, Storage(workdir))[step]))
        manifest = load_step(store)
        assert manifest is not None
        assert all(rows.balance == 0 for rows in manifest.rows.values())
        assert all(part.rows.balance == 0 for part in load_parts(store, manifest.parts))
    assert "Nothing to do: 6 of 6" in calumma("run", str(recipe_file), "--workdir", workdir, "--to", "tokenize", *sets)
    calumma("ledger", workdir)
    assert not list((tmp_path / "state").rglob("ray.json")), "the local Ray of a run on S3 is ended, too"
