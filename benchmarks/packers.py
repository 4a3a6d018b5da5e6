"""Others' ways of packing, for ``benchmarks.packing``: TRL's best fit, and a long row cut every 4,096 tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common import median
from benchmarks.lengths import LENGTH, PICTURE, Ids, V
from model.vocabulary import PAD
from tasks.mix.config import MixConfig


def cut_pictures(tokens_F: Ids) -> int:
    """Pictures that do not lie whole in one sequence, of sequences one after another."""
    begins = np.flatnonzero(tokens_F == V.boi)
    ends = begins + PICTURE - 1
    inside = ends < len(tokens_F)
    whole = inside & (begins // LENGTH == ends // LENGTH)
    whole[inside] &= tokens_F[ends[inside]] == V.eoi
    return int((~whole).sum())


def concatenated(documents: Sequence[Ids]) -> dict[str, Any]:
    """All documents in a row, cut every 4,096 tokens."""
    tokens = np.concatenate(documents)
    stops = np.cumsum([len(d) for d in documents])
    starts = stops - [len(d) for d in documents]
    fitting = (stops - starts) <= LENGTH
    cut = starts // LENGTH != (stops - 1) // LENGTH
    pictures = int((tokens == V.boi).sum())
    return {
        "concat_cut_pictures": cut_pictures(tokens),
        "concat_cut_pictures_share": cut_pictures(tokens) / pictures,
        "concat_cut_documents": int((fitting & cut).sum()),
        "pictures": pictures,
        "documents": len(documents),
    }


def trl(documents: Sequence[Ids]) -> dict[str, Any]:
    """TRL's best-fit packing of the same documents."""
    try:
        from datasets import Dataset, disable_caching, disable_progress_bars
        from trl.data_utils import pack_dataset
    except ImportError as e:
        print(f"TRL is left out ({e}): pip install -e '.[bench]' brings it")
        return {}
    disable_caching()
    disable_progress_bars()
    import pyarrow as pa

    offsets = np.cumsum([0, *(len(d) for d in documents)])
    lists = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(np.concatenate(documents).astype(np.int32))
    )
    dataset = Dataset(pa.table({"input_ids": lists}))
    found: dict[str, Any] = {}
    for name, batch in (("trl", 1000), ("trl_window", MixConfig.model_fields["window"].default)):
        seconds = []
        for _ in range(3):
            begun = time.process_time()
            packed = pack_dataset(dataset, LENGTH, "bfd_split", map_kwargs={"batch_size": batch})
            seconds.append(time.process_time() - begun)
        column = packed.data.column("input_ids").combine_chunks()
        lengths = column.value_lengths().to_numpy()
        tokens = np.full((len(lengths), LENGTH), PAD, np.uint16)
        tokens[np.arange(LENGTH) < lengths[:, None]] = column.flatten().to_numpy()
        found |= {
            f"{name}_fill": float(lengths.sum() / (len(lengths) * LENGTH)),
            f"{name}_cut_pictures": cut_pictures(tokens.reshape(-1)),
            f"{name}_packed_per_second": len(documents) / median(seconds),
        }
    return found
