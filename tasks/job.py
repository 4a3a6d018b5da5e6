"""The entry of every Ray job: ``python -m tasks.job STEP --workdir DIR --recipe NAME --fingerprint F --job ID``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import sys
import time
import traceback
from importlib import metadata
from typing import Any

import yaml

from infra.errors import CalummaError, StepFailed, StepStopped
from infra.storage import Storage
from infra.store.commit import load_own_manifest
from tasks.context import StepContext
from tasks.recipe import parse_recipe
from tasks.steps import BY_NAME

STOPPED = 128 + signal.SIGTERM
"""Exit code of a job that stopped in order when it was asked to: the one that schedulers know for that, 143."""
LIBRARIES = ("torch", "ray", "deepspeed", "numpy", "pyarrow", "pillow", "sentencepiece", "transformers")
"""Their versions are recorded with every job."""


def run_step(context: StepContext) -> None:
    """Runs one step's work in this process; returns when its manifest is committed."""
    module = importlib.import_module(BY_NAME[context.step].module)
    module.run(context)
    if load_own_manifest(context.store(), context.retry) is None:
        raise StepFailed(f"step {context.step} ended without its manifest; this is a fault in {module.__name__}")


def main(argv: list[str] | None = None) -> int:
    """Runs the named step; the exit code is 0 only when its manifest is committed, and 143 when it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m tasks.job", description=__doc__)
    parser.add_argument("step", choices=sorted(BY_NAME))
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--recipe", required=True, help="the resolved recipe, YAML, relative to the work folder")
    parser.add_argument("--fingerprint", required=True, help="what the submitter expects this step's output to be")
    parser.add_argument("--job", required=True)
    parser.add_argument("--retry", type=int, default=0, help="the retry whose additions to the step are made")
    args = parser.parse_args(argv)
    recipe = parse_recipe(yaml.safe_load(Storage(args.workdir).get(args.recipe)), args.recipe)
    context = StepContext(recipe, args.workdir, args.step, args.job, args.retry)
    started = time.time()
    record: dict[str, Any] = {
        "step": args.step,
        "fingerprint": args.fingerprint,
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }
    try:
        if context.fingerprint != args.fingerprint:
            raise StepFailed(
                f"step {args.step}: expected fingerprint {args.fingerprint[:12]}, found {context.fingerprint[:12]}. "
                "The sources changed between planning and running, or the job runs other code. Run again."
            )
        run_step(context)
        record["state"] = "done"
        return 0
    except StepStopped as e:
        record["state"] = "stopped"
        print(e, file=sys.stderr, flush=True)
        return STOPPED
    except CalummaError as e:
        record |= {"state": "failed", "error": str(e)}
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 1
    except Exception as e:
        traceback.print_exc()
        record |= {"state": "failed", "error": f"{type(e).__name__}: {e}"}
        return 1
    finally:
        record |= {"started": started, "seconds": time.time() - started}
        name = f"runs/jobs/{args.job}/record.json"
        try:
            context.workdir.put(name, (json.dumps(record, indent=1) + "\n").encode())
        except CalummaError as e:
            print(f"error: {e}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
