"""Attention's backends: one interface, several ways to compute it, chosen by what the machine has.

A pattern says who attends to whom in one forward: causal, within documents. :func:`prepare` turns it, once for all
layers, into an :class:`Attend`: what takes queries, keys and values. The backends agree within the dtype's rounding;
``tests/model/transformer/test_backends.py`` holds that on CPUs, ``benchmarks/attention.py`` on GPUs.

| backend | what computes | whole rows, documents | where |
| --- | --- | --- | --- |
| reference | products written out | mask of T x T; on CPUs document by document | everywhere |
| sdpa | torch's own attention | causal flag, mask of T x T; on CPUs document by document | everywhere |
| flex | FlexAttention | block mask: blocks of other documents are skipped | GPUs; forward only on CPUs |
| xformers | xformers' BlockDiagonalCausalMask | other documents are never touched | half, on GPUs where it loads |
| varlen | torch's variable-length flash attention | other documents are never touched | half, on GPUs |

Shape letters: B batch, T new positions, S positions attended to, N = B·T positions in a row, H heads, K key and value
heads, C channels of a head, G segments and one.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from infra.errors import ResourceError
from infra.settings import AttentionBackend

log = logging.getLogger("calumma")

Backend = Literal["reference", "sdpa", "flex", "xformers", "varlen"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
FASTEST_FIRST: tuple[Backend, ...] = ("varlen", "xformers", "flex", "sdpa")
"""The order in which ``auto`` tries them on a GPU: what skips most comes first."""
HALF = (torch.bfloat16, torch.float16)
PADDING = -1
"""Document number of padding: no other position attends to it."""


class Attend(Protocol):
    """Attention with the pattern built in: q (B, H, T, C) and k, v (B, K, S, C) to (B, H, T, C), in their dtype."""

    def __call__(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor: ...


class Segments(NamedTuple):
    """Where the documents of the flattened micro-batch begin, for backends that take them one after the other."""

    cu_seqlens: Tensor
    """int32 (G,): the first position of each segment, and B·T last; repeated borders are segments of no length."""
    longest: int
    """Positions of the longest segment."""

    @classmethod
    def of(cls, documents_BT: Tensor) -> Segments:
        """Of documents as :func:`document_mask` takes them; on a GPU this waits for it, once a forward."""
        n = documents_BT.numel()
        begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)  # a row always begins a segment
        begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        starts = begins_BT.flatten().nonzero().squeeze(1).to(torch.int32)
        borders = torch.cat((starts, starts.new_tensor([n])))
        return cls(borders, int(borders.diff().max()))

    def by_row(self, rows: int, length: int) -> tuple[tuple[int, ...], ...]:
        """The segments' lengths, row by row, without those of no length."""
        found: list[list[int]] = [[] for _ in range(rows)]
        for first, end in pairwise(self.cu_seqlens.tolist()):
            if end > first:
                found[first // length].append(end - first)
        return tuple(map(tuple, found))

    @classmethod
    def whole_rows(cls, rows: int, length: int, device: torch.device) -> Segments:
        """Every row one segment."""
        return cls(torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=device), length)


def document_mask(documents_BT: Tensor) -> Tensor:
    """Who attends to whom inside one forward: causal, and within a document. bool (B, 1, T, T), True = attends.

    Padding attends to padding, so that no row is empty: an empty row would make the softmax NaN.
    """
    t = documents_BT.shape[1]
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    causal = torch.ones(t, t, dtype=torch.bool, device=documents_BT.device).tril()
    return (same & causal)[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as what is added to the scores: 0 or the lowest number, so that it is made once for all layers."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


@dataclass(frozen=True)
class Reference:
    """Attention written out: scores, softmax (float32 inside, as torch computes it), weighted sum.

    On CPUs without their own bf16 attention this is three to four times as fast in bf16 as torch's.
    """

    mask: Tensor | None
    """Additive (B, 1, T, S); None: causal, T = S."""

    def __call__(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
        h, t, c = q_BHTC.shape[1:]
        s, groups = k_BKSC.shape[2], h // k_BKSC.shape[1]
        mask = self.mask
        if mask is None:
            mask = additive(torch.ones(t, s, dtype=torch.bool, device=q_BHTC.device).tril()[None, None], q_BHTC.dtype)
        if groups > 1:
            k_BKSC, v_BKSC = k_BKSC.repeat_interleave(groups, 1), v_BKSC.repeat_interleave(groups, 1)
        scores_BHTS = ((q_BHTC * c**-0.5) @ k_BKSC.transpose(2, 3)).add_(mask)
        weights_BHTS: Tensor = scores_BHTS.softmax(-1)
        return weights_BHTS @ v_BKSC


@dataclass(frozen=True)
class Sdpa:
    """torch's scaled_dot_product_attention, which chooses its kernel by itself."""

    mask: Tensor | None
    """Additive (B, 1, T, S); None: causal, T = S."""

    def __call__(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
        grouped = q_BHTC.shape[1] != k_BKSC.shape[1]
        return F.scaled_dot_product_attention(
            q_BHTC, k_BKSC, v_BKSC, attn_mask=self.mask, is_causal=self.mask is None, enable_gqa=grouped
        )


@dataclass(frozen=True)
class BySegments:
    """Documents one after the other, each causally by itself: on CPUs, where a mask hides but does not spare."""

    causal: Attend
    lengths: tuple[tuple[int, ...], ...]
    """Of each row's segments, padding among them; they add up to T."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it would be compiled anew for every batch's lengths
    def __call__(self, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor) -> Tensor:
        def cut(x: Tensor) -> list[Tensor]:  # split, not slices: their gradients are put together once
            rows = torch.split(x, 1)
            return [s for row, own in zip(rows, self.lengths, strict=True) for s in torch.split(row, list(own), 2)]

        found = [self.causal(*qkv) for qkv in zip(cut(q_BHTC), cut(k_BKTC), cut(v_BKTC), strict=True)]
        rows, at = [], 0
        for own in self.lengths:
            rows.append(torch.cat(found[at : at + len(own)], 2))
            at += len(own)
        return torch.cat(rows)


@dataclass(frozen=True)
class Flex:
    """FlexAttention (Dong et al., 2024) over a block mask; fused only where it is compiled, which a GPU needs."""

    mask: Any
    """A BlockMask."""

    def __call__(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
        grouped = q_BHTC.shape[1] != k_BKSC.shape[1]
        attention = _flex(q_BHTC.device.type)
        out: Tensor = attention(q_BHTC, k_BKSC, v_BKSC, block_mask=self.mask, enable_gqa=grouped)
        return out


@dataclass(frozen=True)
class Xformers:
    """xformers' memory-efficient attention over its BlockDiagonalCausalMask: all rows one after the other."""

    mask: Any
    """A BlockDiagonalCausalMask."""

    def __call__(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
        from xformers.ops import memory_efficient_attention

        b, h, t, c = q_BHTC.shape
        kv = k_BKSC.shape[1]
        # Five dimensions say which query heads share a key head; the keys are repeated as a view, not in memory.
        q = q_BHTC.transpose(1, 2).reshape(1, b * t, kv, h // kv, c)
        k, v = (
            x.transpose(1, 2).reshape(1, b * t, kv, 1, c).expand(1, b * t, kv, h // kv, c) for x in (k_BKSC, v_BKSC)
        )
        if h == kv:
            q, k, v = (x.squeeze(3) for x in (q, k, v))
        out: Tensor = memory_efficient_attention(q, k, v, attn_bias=self.mask)
        return out.reshape(b, t, h, c).transpose(1, 2)


@dataclass(frozen=True)
class Varlen:
    """Flash attention over segments of any length (Dao, 2023), as torch brings it: all rows one after the other."""

    cu_seqlens: Tensor
    longest: int

    def __call__(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        b, h, t, c = q_BHTC.shape
        q_NHC, k_NKC, v_NKC = (x.transpose(1, 2).reshape(b * t, -1, c) for x in (q_BHTC, k_BKSC, v_BKSC))
        grouped = h != k_BKSC.shape[1]
        out = varlen_attn(
            *(q_NHC, k_NKC, v_NKC, self.cu_seqlens, self.cu_seqlens, self.longest, self.longest),
            window_size=(-1, 0),
            enable_gqa=grouped,
        )
        assert isinstance(out, Tensor)
        return out.view(b, t, h, c).transpose(1, 2)


def prepare(
    backend: Backend,
    documents_BT: Tensor | None,
    rows: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
    segments: Segments | None = None,
) -> Attend:
    """Attention for one forward over ``rows`` x ``length`` positions.

    Args:
        documents_BT: int, each position's document within its row, ``PADDING`` for padding; a document's positions
            are neighbours. None: every row is one document.
        segments: The same borders, where the caller has them; else they are found where the backend needs them.
    """
    if backend in ("reference", "sdpa"):
        if documents_BT is not None and device.type == "cpu":
            segments = Segments.of(documents_BT) if segments is None else segments
            return BySegments(masked(backend, None, dtype), segments.by_row(rows, length))
        mask = None if documents_BT is None else document_mask(documents_BT)
        return masked(backend, mask, dtype)
    if backend == "flex":
        return Flex(_block_mask(documents_BT, rows, length, device))
    if segments is None:
        whole = documents_BT is None
        segments = Segments.whole_rows(rows, length, device) if whole else Segments.of(documents_BT)  # type: ignore[arg-type]
    if backend == "varlen":
        return Varlen(*segments)
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    lengths = [n for n in segments.cu_seqlens.diff().tolist() if n]
    return Xformers(BlockDiagonalCausalMask.from_seqlens(lengths, device=device))


def masked(backend: Backend, mask: Tensor | None, dtype: torch.dtype) -> Attend:
    """Attention under any bool mask (B, 1, T, S), as a cache needs it; None: causal, T = S.

    ``reference`` where that is the backend, torch's own otherwise: the others know no such masks.
    """
    added = None if mask is None else additive(mask, dtype)
    return Reference(added) if backend == "reference" else Sdpa(added)


def choose(wanted: AttentionBackend, device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """The backend for tensors of this kind; says once in the log which.

    Raises:
        ResourceError: ``wanted`` does not work here; the message says why, and what does.
    """
    return _choose(wanted, str(device), dtype, head_dim)


@lru_cache
def _choose(wanted: AttentionBackend, device: str, dtype: torch.dtype, head_dim: int) -> Backend:
    kind = str(dtype).removeprefix("torch.")
    if wanted != "auto":
        why_not = unavailable(wanted, device, dtype, head_dim)
        if why_not is not None:
            have = [name for name in BACKENDS if unavailable(name, device, dtype, head_dim) is None]
            raise ResourceError(
                f"resources.attention_backend: {wanted} does not work here on {device} in {kind}: {why_not}. "
                f"Expected one of: auto, {', '.join(have)}."
            )
        log.info("attention on %s in %s: %s, as the recipe says", device, kind, wanted)
        return wanted
    if device.startswith("cpu"):
        found: Backend = "reference" if dtype == torch.bfloat16 else "sdpa"
    else:
        found = next(b for b in FASTEST_FIRST if b == "sdpa" or unavailable(b, device, dtype, head_dim) is None)
    log.info("attention on %s in %s: %s", device, kind, found)
    return found


@lru_cache
def unavailable(backend: Backend, device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a backend does not work on a device; None where it does: a small forward and backward is tried."""
    if backend in ("reference", "sdpa"):
        return None
    if backend in ("xformers", "varlen"):
        if not device.startswith("cuda"):
            return "it needs a GPU"
        if dtype not in HALF:
            return "its kernels take bfloat16 and float16 only (resources.precision: bf16)"
    if backend == "xformers" and importlib.util.find_spec("xformers") is None:
        return "the package xformers is not installed"
    if backend == "flex" and device.startswith("cpu"):
        return "torch has no backward pass of it on CPUs"
    try:
        with torch.enable_grad():
            q, k, v = (torch.randn(2, h, 128, head_dim, device=device, dtype=dtype) for h in (4, 2, 2))
            q.requires_grad_()
            documents = torch.arange(256, device=device).view(2, 128) // 50
            attend = prepare(backend, documents, 2, 128, q.device, dtype)
            attend(q, k, v).sum().backward()  # type: ignore[no-untyped-call]
            if q.grad is None or not bool(q.grad.isfinite().all()):
                return "its gradients are not finite"
    except Exception as e:  # what packages say that were built for another torch or GPU is of many kinds
        return f"{type(e).__name__}: {str(e).strip().splitlines()[0][:200] if str(e).strip() else 'no reason given'}"
    return None


def _block_mask(documents_BT: Tensor | None, rows: int, length: int, device: torch.device) -> Any:
    """FlexAttention's description of :func:`document_mask`, with whole blocks left out where no two positions meet."""
    from torch.nn.attention.flex_attention import create_block_mask

    if documents_BT is None:
        return create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=device)
    documents = documents_BT

    def meet(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (documents[b, i] == documents[b, j])

    return create_block_mask(meet, rows, None, length, length, device=device)


@lru_cache
def _flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=False)
