"""Pieces of parameters in files, without DeepSpeed: written by some ranks and read by others."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import StoreError
from infra.storage import Storage
from model.training import stored
from model.training.state import KINDS, Piece
from model.training.stored import StoredState, copied, files_of

SHAPES = {"embedding.weight": (7, 3), "layers.0.norm.weight": (5,), "lm_head.weight": (4, 4)}


def parameters(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {name: {kind: torch.randn(shape, generator=generator) for kind in KINDS} for name, shape in SHAPES.items()}


def cut(whole: dict[str, dict[str, torch.Tensor]], name: str, start: int, stop: int) -> Piece:
    return Piece(name, SHAPES[name], start, *(whole[name][kind].view(-1)[start:stop] for kind in KINDS))


def write(store: Storage, pieces: list[Piece], rank: int, taken: int = 3) -> list[str]:
    names = []
    for number, data in enumerate(files_of(copied(pieces, taken))):
        names.append(f"rank-{rank}-{number}")
        store.put(names[-1], data)
    return names


@st.composite
def cuts(draw: st.DrawFn, size: int) -> list[tuple[int, int]]:
    ends = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=4))})
    return list(itertools.pairwise(ends))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_cut_is_read_in_any_other(data: st.DataObject) -> None:
    whole, found = parameters(1), parameters(2)
    with tempfile.TemporaryDirectory() as folder:
        store, names = Storage(folder), []
        pieces = [cut(whole, n, *c) for n in SHAPES for c in data.draw(cuts(whole[n]["weight"].numel()))]
        world = data.draw(st.integers(1, 4))
        for rank in range(world):
            names += write(store, pieces[rank::world], rank)
        state = StoredState(store, names)
        for name in SHAPES:
            for start, stop in data.draw(cuts(found[name]["weight"].numel())):
                state.fill(cut(found, name, start, stop))
        weights = dict(state.weights())
    assert state.taken == 3
    for name in SHAPES:
        assert torch.equal(weights[name], whole[name]["weight"])
        assert all(torch.equal(found[name][kind], whole[name][kind]) for kind in KINDS)


def test_many_bytes_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "FILE_BYTES", 100)
    whole = parameters(1)
    names = write(Storage(tmp_path), [cut(whole, n, 0, whole[n]["weight"].numel()) for n in SHAPES], 0)
    assert len(names) == 2  # the norm is small, and shares one with what comes after it


def test_whole_weights_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parameters(1)
    pieces = [cut(whole, n, a, b) for n in SHAPES for a, b in ((0, 2), (2, whole[n]["weight"].numel()))]
    store, read, ranges = Storage(tmp_path), list[int](), Storage.range
    weights = StoredState(store, write(store, pieces, 0)).weights()

    def counted(self: Storage, name: str, begin: int, end: int) -> bytes:
        read.append(end - begin)
        return ranges(self, name, begin, end)

    monkeypatch.setattr(Storage, "range", counted)
    assert list(weights) == list(SHAPES)
    assert read == []
    assert torch.equal(weights["lm_head.weight"], whole["lm_head.weight"]["weight"])
    assert read == [4 * 2, 4 * 14]


def test_what_is_missing_or_of_another_model_is_named(tmp_path: Path) -> None:
    store, whole = Storage(tmp_path), parameters(1)
    state = StoredState(store, write(store, [cut(whole, "lm_head.weight", 0, 12)], 0))
    with pytest.raises(StoreError, match=r"of elements 0 to 15 of lm_head\.weight \(weight, 16 in all\).*hold 12"):
        state.fill(cut(whole, "lm_head.weight", 0, 16))
    with pytest.raises(StoreError, match=r"lm_head\.weight has shape \(4, 4\), the model's \(2, 8\)"):
        state.fill(cut(whole, "lm_head.weight", 0, 12)._replace(shape=(2, 8)))
    other = write(store, [cut(whole, "lm_head.weight", 12, 16)], 1, taken=4)
    with pytest.raises(StoreError, match=r"found after \[3, 4\] steps"):
        StoredState(store, ["rank-0-0", *other])
    store.put("junk", b"{}")
    with pytest.raises(StoreError, match="junk: not a file of a checkpoint"):
        StoredState(store, ["junk"])
