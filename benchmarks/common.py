"""What all benchmarks share: the machine and versions in words, fair timing, and the last line of figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real pictures and texts beside the checkout, where there are any."""
PACKAGES = ("torch", "ray", "pyarrow", "pillow", "opencv-python-headless", "numpy")


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, accelerators; versions of Python and packages.

    No names of hosts. ``packages`` come on top of the usual ones; what is not installed is left out.
    """
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "accelerators": _accelerators(),
        "python": platform.python_version(),
    }
    for package in (*PACKAGES, *packages):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def machine_line(*packages: str) -> str:
    """:func:`machine` as one line to read."""
    facts = machine(*packages)
    accelerators = ", ".join(facts.pop("accelerators")) or "no accelerator"
    head = f"{facts.pop('processor')}, {facts.pop('cores')} cores, {facts.pop('memory_gib')} GiB, {accelerators}"
    return f"{head}, {facts.pop('system')}; " + ", ".join(f"{name} {version}" for name, version in facts.items())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _accelerators() -> list[str]:
    import torch

    return (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )


def median(values: Iterable[float]) -> float:
    """The middle value; of an even number the mean of the two in the middle."""
    return statistics.median(values)


def timed(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every round of every contender.

    The contenders take turns, and each round begins with the next of them, so that whatever else the machine does in
    the meantime meets all alike. One turn each goes before, uncounted.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        contenders[name]()
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            begun = clock()
            contenders[name]()
            seconds[name].append(clock() - begun)
    return seconds


def speed_ratio(peer: Iterable[float], ours: Iterable[float]) -> float:
    """How many times faster than the peer we were, by rounds of :func:`timed`: the median of the rounds' ratios."""
    return median(p / o for p, o in zip(peer, ours, strict=True))


def peak_mib() -> float:
    """The most MiB that this process held. Not getrusage, whose figure goes back to the process that started this."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def emit(figures: Mapping[str, Any], as_json: bool) -> None:
    """Prints the figures to read, one a line, and with ``as_json`` ends with them as one line of JSON.

    The line also has :func:`machine` under ``machine``, unless the figures bring their own.
    """
    print()
    for name, value in figures.items():
        print(f"{name:32} {_rounded(value) if isinstance(value, float) else value}")
    if as_json:
        print(json.dumps({**figures, "machine": figures.get("machine", machine())}), flush=True)


def _rounded(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
