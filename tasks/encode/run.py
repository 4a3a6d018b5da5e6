"""The step ``encode``: every selected sample's pictures become codes, part by part. The sample store.

Pictures are encoded in batches of ``encode.batch``, cut from the work item in source order; the last one is filled up
with white. So a part's codes depend on the work item alone, and making it twice gives the same bytes.

Inside a worker, reading, decoding and encoding run beside each other (``pictures.py``, ``batches.py``).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from infra.errors import ResourceError
from infra.settings import ResourcesConfig
from infra.store.commit import load_own_manifest, load_parts
from infra.store.manifest import Rows
from infra.store.samples import QUARANTINE, SAMPLES
from infra.store.tables import write_table
from tasks.context import StepContext
from tasks.encode.batches import BatchEncoder
from tasks.encode.decode import ImageError
from tasks.encode.pictures import Prepared, Preparer
from tasks.encode.transforms import transform
from tasks.pool import PartOutput, run_items
from tasks.retry import retried_rows
from tasks.scan.facts import storable
from tasks.scan.items import AGAIN
from tasks.scan.selected import selected, work_items
from tasks.sources.base import RawSample, WorkItem


class SampleEncoder:
    """Makes one part of the sample store at a time, on a GPU where ``resources.data_gpus`` gives it one."""

    def __init__(self, context: StepContext) -> None:
        import torch

        from model.image_tokenizer.fast import keep_freed_memory
        from model.image_tokenizer.load import load_image_tokenizer

        torch.set_num_threads(1)  # codes may depend on it in the last bit, and workers share the cores
        self._context = context
        resources, recipe = context.recipe.resources, context.recipe
        device = _device(resources.data_gpus)
        if device == "cpu":
            keep_freed_memory()
        self._tokenizer = load_image_tokenizer(
            context.store("image-tokenizer"),
            device,
            decoder=False,
            precision=recipe.encode.precision,
            compile=recipe.encode.compile,
        )
        self._batch = recipe.encode.batch
        threads = _decode_threads(resources)
        self._preparer = Preparer(
            transform(recipe.pictures.transform),
            self._tokenizer.config.resolution,
            recipe.scan.max_pixels,
            threads,
            # A batch's worth, so that the next one is ready when the device is; and work for every thread.
            max(self._batch, 2 * threads),
        )

    def process(self, item: WorkItem) -> PartOutput:
        kind = self._context.recipe.source(item.source).kind
        batches = BatchEncoder(self._tokenizer, self._batch)
        kept: list[tuple[dict[str, Any], list[int]]] = []
        quarantine: list[dict[str, Any]] = []
        for sample in self._preparer.prepare(item.source, selected(self._context, item), batches):
            fault = sample.fault
            if fault is None:
                try:
                    kept.append((_sample(sample, kind), batches.add(sample.pictures)))
                except ImageError as e:
                    fault = e.error_class, e.message
            if fault is not None:
                quarantine.append(_quarantined(item.source, sample.raw, *fault))
        codes = batches.finish()
        for row, places in kept:
            for image, place in zip(row["images"], places, strict=True):
                image["codes"] = codes[place]
        files = {f"{item.part}.parquet": write_table([row for row, _ in kept], SAMPLES)}
        if quarantine:
            files[f"{item.part}.quarantine.parquet"] = write_table(quarantine, QUARANTINE)
        errors = Counter(q["error"] for q in quarantine)
        return PartOutput(
            part=item.part,
            source=item.source,
            files=files,
            rows=Rows(entered=len(kept) + len(quarantine), out=len(kept), quarantined=dict(sorted(errors.items()))),
            facts={"images": sum(len(places) for _, places in kept)},
        )


def run(context: StepContext, workers: int | None = None) -> None:
    """Makes the sample store and commits the step; ``workers`` 0: in this process, without Ray."""
    context.manifest("image-tokenizer")
    items, chosen, retried, again = work_items(context), context.manifest("select"), dict[str, dict[str, int]](), 0
    if context.retry:
        chosen = load_own_manifest(context.store("select"), context.retry) or chosen
        retried = retried_rows(context, items)
        again = sum(len(item.locator.get(AGAIN, ())) for item in items)
    parts = run_items(
        context,
        items,
        SampleEncoder,
        workers=workers,
        gpus=context.recipe.resources.data_gpus,
        unit="samples",
        weight=lambda manifest: manifest.rows.entered,
        total=sum(rows.out for rows in chosen.rows.values()) + again,
    )
    images = Counter[str]()
    for manifest in load_parts(context.store(), context.parts(parts)):
        images[manifest.source] += int(manifest.facts["images"])
    context.finish(
        parts=parts,
        retried=retried,
        facts={
            "images": dict(images),
            "codes_per_image": context.recipe.image_tokenizer.codes_per_image,
            "transform": context.recipe.pictures.transform,
        },
    )


def _decode_threads(resources: ResourcesConfig) -> int:
    if resources.decode_threads is not None:
        return resources.decode_threads
    return max(2, int(resources.data_cpus)) if resources.data_gpus else 0


def _device(gpus: float) -> str:
    """Where a worker encodes; Ray shows it only the GPU that it was given."""
    if not gpus:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise ResourceError(
            f"resources.data_gpus is {gpus:g} and torch finds no GPU here. Set it to 0 to encode on CPUs, "
            "or install a build of torch with CUDA on the workers."
        )
    return "cuda"


def _sample(sample: Prepared, kind: str) -> dict[str, Any]:
    """A row of the sample store, its pictures' codes still to come."""
    raw, row = sample.raw, sample.row
    return {
        "sample_id": row.sample_id,
        "key": storable(raw.key),
        "file": storable(raw.file),
        "row": raw.row,
        "kind": kind,
        "category": raw.category,
        "licence": row.licence,
        "held_out": row.held_out,
        "captions": list(raw.captions),
        "segments": [{"role": s.role, "text": s.text, "image": s.image} for s in raw.segments],
        "images": [image.row() for image in row.images],
        "dropped_images": len(row.dropped),
        "language": row.language,
        "scores": [{"name": name, "value": value} for name, value in row.scores],
        "tokens": raw.tokens,
    }


def _quarantined(source: str, raw: RawSample, error: str, message: str) -> dict[str, Any]:
    return {
        "source": source,
        "key": storable(raw.key),
        "file": storable(raw.file),
        "row": raw.row,
        "error": error,
        "message": storable(message),
    }
