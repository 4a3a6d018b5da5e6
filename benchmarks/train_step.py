"""Training tokens a second beside ``transformers``' Chameleon: packed documents against padded ones, and a dense batch.

    python -m benchmarks.train_step [--json] [--threads 2] [--rounds 5]      (some five minutes, 8 GiB)

Both sides have the same weights, dtype, threads, labels, AdamW and clipping, run eagerly, and agree in their losses
before anything is timed; ``trainers.py`` says what they are. They take turns, and each round begins with the next.

- ``useful_tokens_ratio``: the documents of a batch of packed sequences, real lengths of captions with pictures, texts,
  programs and illustrated pages in the paper's proportions (``lengths.py``), drawn at random from a packed window. Ours
  trains on the sequences; the peer on the same documents, ``--rows`` at a time, each padded to the longest of its
  batch, so that its batches have at most as many tokens as ours. One optimizer step each. Useful tokens are those with
  a label, the same on both sides. The vocabulary is smaller here, pictures and 8,192 pieces of text, as the peer holds
  the logits of a whole batch several times. ``useful_tokens_ratio_sorted``: its documents sorted by length first.
  Every round has sequences of its own draw, since one draw may happen to need little padding, or much.
- ``useful_share_N``: of 4,000 such documents in batches of N rows, how much is not padding.
- ``dense_ratio``: rows of one document each, nothing padded; both sides get the same tensors.

bf16 is measured where the processor multiplies it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, cycle
from typing import Any

import numpy as np
import torch

from benchmarks.common import emit, machine_line, median, speed_ratio, timed
from benchmarks.lengths import V, draw, ids_of, real_shapes, shares
from benchmarks.trainers import Ids, Micro, Ours, Peer, labels_of, mean_nll, optimizer_of, packed, padded, step
from infra.settings import ResourcesConfig
from model.training.optimizer import use_bf16
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer
from tasks.mix.bestfit import best_fit

AGREE = 1e-3
"""Nats by which the two losses may differ in float32; in bf16 twenty times that."""
WINDOW = 4000
"""Documents packed together, of which a batch is a few sequences."""
SHARES_OF = (2, 4, 8, 16)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a packed sequence")
    parser.add_argument("--rows", type=int, default=4, help="sequences of a packed batch, documents of a padded one")
    parser.add_argument("--dense", type=int, nargs=2, default=(2, 2048), metavar=("ROWS", "LENGTH"))
    parser.add_argument("--vocabulary", type=int, default=65536, help="of the dense batch's model")
    parser.add_argument(
        "--packed-vocabulary",
        type=int,
        default=24576,
        help="of the other batches' model; with 65536 the peer wants 14 GB",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("packed", "dense"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(machine_line("transformers"), f"\n{args.threads} thread(s)")
    bf16 = use_bf16(ResourcesConfig())
    figures: dict[str, Any] = {"threads": args.threads, "bf16_measured": bf16}
    pieces = [fold(ids, args.packed_vocabulary) for ids in real_pieces(args.length)] if args.only != "dense" else []
    for dtype in (torch.float32, torch.bfloat16) if bf16 else (torch.float32,):
        suffix = "" if dtype == torch.float32 else "_bf16"
        if args.only != "dense":
            figures |= {name + suffix: value for name, value in packed_figures(args, pieces, dtype).items()}
        if args.only != "packed":
            figures |= {name + suffix: value for name, value in dense_figures(args, dtype).items()}
    if not bf16:
        print("bf16: NOT measured. This processor has no instructions for it, and torch's emulation says nothing.")
    emit(figures, args.json)


def real_pieces(length: int) -> list[Ids]:
    """Documents in the paper's proportions, of real lengths, those longer than a sequence cut into pieces."""
    rng = np.random.default_rng(0)
    found: list[Ids] = []
    shapes = real_shapes()
    mean = sum(share / np.mean([s.tokens for s in shapes[name]]) for name, share in shares().items())
    for name, share in shares().items():
        for shape in draw(shapes[name], float(WINDOW / mean * share), rng):
            ids = ids_of(shape, rng)
            found += [ids[at : at + length] for at in range(0, len(ids), length) if at + 1 < len(ids)]
    rng.shuffle(found)
    return found


def fold(ids: Ids, vocabulary: int) -> Ids:
    """The same document with fewer text pieces; pictures stay as they are."""
    text = ids >= V.text_start
    return np.where(text, V.text_start + (ids - V.text_start) % (vocabulary - V.text_start), ids).astype(np.uint16)


def packed_figures(args: argparse.Namespace, pieces: Sequence[Ids], dtype: torch.dtype) -> dict[str, Any]:
    """Packed against padded, and what padding there is in longer batches than can be trained on here."""
    sizes = np.array([len(ids) for ids in pieces])
    figures: dict[str, Any] = {"documents_mean_tokens": float(sizes.mean())}
    for number in SHARES_OF:
        by_batch = sizes[: len(sizes) // number * number].reshape(-1, number)
        figures[f"useful_share_{number}"] = float(by_batch.sum() / (by_batch.max(1) * number).sum())
    ours, peer = contenders(args.dim, args.layers, args.packed_vocabulary, dtype)
    draws = [draw_batches(pieces, args.length, args.rows, number) for number in range(args.rounds)]
    useful = [{name: labels_of(micros) for name, micros in draw.items()} for draw in draws]
    assert all(len(set(counts.values())) == 1 for counts in useful), useful
    sides: dict[str, Ours | Peer] = {"ours": ours, "padded": peer, "sorted": peer}
    agree({name: mean_nll(side, draws[0][name]) for name, side in sides.items()}, dtype)
    turns = {name: (side, [draw[name] for draw in draws]) for name, side in sides.items()}
    seconds = race(turns, args.rounds)
    figures |= {
        "useful_tokens_ratio": speed_ratio(seconds["padded"], seconds["ours"]),
        "useful_tokens_ratio_sorted": speed_ratio(seconds["sorted"], seconds["ours"]),
        "batches": len(draws),
        "useful_tokens": sum(counts["ours"] for counts in useful),
    }
    for name, (_, batches) in turns.items():
        places = sum(micro["tokens"].numel() for micros in batches for micro in micros)
        figures[f"{name}_useful_tokens_per_second"] = figures["useful_tokens"] / sum(seconds[name])
        figures[f"{name}_useful_share"] = figures["useful_tokens"] / places
    return figures


def draw_batches(pieces: Sequence[Ids], length: int, rows: int, number: int) -> dict[str, list[Micro]]:
    """The micro-batches of one optimizer step for each side, with the same documents."""
    chosen = packed_rows(pieces, length, rows, number)
    documents = [ids for row in chosen for ids in row]
    np.random.default_rng(number).shuffle(documents)
    return {
        "ours": [packed(chosen, length, V)],
        "padded": [padded(some) for some in groups(documents, rows)],
        "sorted": [padded(some) for some in groups(sorted(documents, key=len), rows)],
    }


def dense_figures(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """The same tensors for both sides."""
    ours, peer = contenders(args.dim, args.layers, args.vocabulary, dtype)
    b, t = args.dense
    tokens_BT = torch.randint(4, args.vocabulary, (b, t + 1), generator=torch.Generator().manual_seed(0))
    micros: list[Micro] = [{"tokens": tokens_BT[:, :-1].contiguous(), "labels": tokens_BT[:, 1:].contiguous()}]
    agree({"ours": mean_nll(ours, micros), "theirs": mean_nll(peer, micros)}, dtype)
    seconds = race({"ours": (ours, [micros]), "peer": (peer, [micros])}, args.rounds)
    return {
        "dense_ratio": speed_ratio(seconds["peer"], seconds["ours"]),
        "dense_ours_tokens_per_second": b * t / median(seconds["ours"]),
        "dense_peer_tokens_per_second": b * t / median(seconds["peer"]),
    }


def contenders(dim: int, layers: int, vocabulary: int, dtype: torch.dtype) -> tuple[Ours, Peer]:
    """Both sides with the same random weights; heads of 64 channels, no dropout."""
    config = TransformerConfig(dim=dim, layers=layers, heads=max(1, dim // 64), dropout=0)
    model = Transformer(config, vocabulary).initialise(0).to(dtype)
    print(f"\n{model.parameter_count() / 1e6:.1f} M parameters, vocabulary {vocabulary:,}, {dtype}", flush=True)
    return Ours(model), Peer(model)


def packed_rows(pieces: Sequence[Ids], length: int, count: int, seed: int) -> list[list[Ids]]:
    """``count`` sequences, drawn at random from those that best fit makes of the window."""
    sequence_N, offset_N, opened = best_fit(np.array([len(ids) for ids in pieces], np.int64), length)
    chosen = np.random.default_rng(seed).choice(opened, min(count, opened), replace=False)
    inside = [np.flatnonzero(sequence_N == s) for s in chosen]
    return [[pieces[n] for n in found_K[np.argsort(offset_N[found_K])].tolist()] for found_K in inside]


def groups(documents: Sequence[Ids], rows: int) -> list[Sequence[Ids]]:
    """Batches of so many documents; the last may be smaller."""
    return [documents[at : at + rows] for at in range(0, len(documents), rows)]


def agree(losses: dict[str, float], dtype: torch.dtype) -> None:
    """Stops unless the sides compute the same."""
    print("losses before training: " + ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items()), flush=True)
    if not max(losses.values()) - min(losses.values()) <= AGREE * (1 if dtype == torch.float32 else 20):
        raise SystemExit(f"the sides disagree, so that timing them would say nothing: {losses}")


def race(sides: Mapping[str, tuple[Ours | Peer, Sequence[Sequence[Micro]]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of optimizer steps, in turns, each round on the next of the batches."""
    optimizers = {id(side): optimizer_of(side) for side, _ in sides.values()}

    def runner(side: Ours | Peer, batches: Sequence[Sequence[Micro]]) -> Callable[[], None]:
        following = chain(batches[-1:], cycle(batches))  # the uncounted turn's, then the rounds'
        return lambda: step(side, optimizers[id(side)], next(following))

    seconds = timed({name: runner(*pair) for name, pair in sides.items()}, rounds)
    for name, taken in seconds.items():
        print(f"{name:8} " + ", ".join(f"{s:.2f} s" for s in taken), flush=True)
    return seconds


if __name__ == "__main__":
    main()
