"""The house's rules: who may import whom, what a recipe may pull in, how fast help answers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("flows", "tasks", "model", "infra")
HEAVY = {"torch", "ray", "prefect", "deepspeed", "transformers"}
MAY_IMPORT = {
    "flows": {"flows", "tasks", "model", "infra"},
    "tasks": {"tasks", "model", "infra"},
    "model": {"model", "infra"},
    "infra": {"infra"},
}
MAY_NOT_USE = {
    "flows": {"torch", "deepspeed", "transformers", "numpy"},
    "tasks": {"prefect"},
    "model": {"prefect", "ray"},
    "infra": {"prefect"},
}
FILES = sorted(p for layer in LAYERS for p in (ROOT / layer).rglob("*.py"))


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    found = imported(path)
    assert not (found & set(LAYERS)) - MAY_IMPORT[layer]
    assert not found & MAY_NOT_USE[layer]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_load_late(path: Path) -> None:
    found = imported(path, top_level_only=True)
    if path.name in ("config.py", "__init__.py"):
        assert not found & HEAVY
    if path != ROOT / "model" / "processor" / "processing_calumma.py":  # which is transformers' own kind of file
        assert not found & {"deepspeed", "transformers"}, "a CPU-only controller must not load these"


def test_the_rule_sees_a_breach(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from prefect.artifacts import x\n    import ray.train as t\n")
    assert imported(bad) == {"prefect", "ray"}
    assert imported(bad, top_level_only=True) == set()


def test_a_recipe_loads_nothing_heavy() -> None:
    code = "import sys, tasks.recipe; print(sorted({'torch', 'ray', 'prefect', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from flows.cli import app; "
        "r = CliRunner().invoke(app, ['--help']); assert r.exit_code == 0, r.output; "
        "print(sorted({'torch', 'ray', 'prefect', 'numpy', 'pyarrow', 'pydantic', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_command_has_help_with_an_example() -> None:
    from flows.cli import app

    names = {c.callback.__name__ for c in app.registered_commands if c.callback}
    stores = {"ledger", "retry", "verify", "trace", "clean", "browse", "tokens"}
    assert names == {"run", "plan", "status", "inspect", "generate", "export", "ui"} | stores
    for command in app.registered_commands:
        assert command.callback is not None
        assert command.callback.__doc__
        assert (command.epilog or "").startswith("Example: calumma ")
