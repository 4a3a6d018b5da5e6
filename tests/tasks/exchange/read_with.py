"""Reads data sets with another trainer's own package: ``read_with.py streaming|megatron OUT.npz PATH…``.

A process of its own: what these packages import, start and leave behind is no matter of the tests'. ``OUT.npz`` gets an
array for every column of every sample, ``PATH NUMBER COLUMN``, and ``PATH count``.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.peers import megatron_indexed, streaming


def main(package: str, out: str, *paths: str) -> None:
    found: dict[str, np.ndarray] = {}
    for path in paths:
        if package == "streaming":
            data = streaming().StreamingDataset(local=path, shuffle=False, batch_size=1, validate_hash="sha1")
            for number in range(len(data)):
                found |= {f"{path} {number} {name}": np.asarray(value) for name, value in data[number].items()}
            found[f"{path} count"] = np.array(len(list(data)))
        else:
            data = megatron_indexed()(path)
            # Copies: what it hands out lies in the file's memory map, and goes with it.
            found |= {f"{path} {number} tokens": np.array(data[number]) for number in range(len(data))}
            found |= {f"{path} count": np.array(len(data)), f"{path} documents": np.array(data.document_indices)}
    np.savez(out, **{name.replace("/", "|"): value for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
