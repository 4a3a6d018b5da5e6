"""Step ``image-tokenizer``: the VQ-GAN, trained on the selected pictures, measured on held-out ones.

Output: ``model.safetensors`` and ``config.json``, ``metrics.jsonl`` (one JSON object a line: step, losses, psnr, use of
the codebook, figures of held-out pictures), ``curves.png`` of it, ``reconstructions.png`` (rows in turn of pictures and
of what the tokenizer makes of them), and under ``evaluations`` such sheets of while it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.errors import RecipeError, SourceError
from infra.settings import ResourcesConfig
from infra.storage import Storage
from infra.store.commit import entry, entry_of_file
from model.image_tokenizer.config import ImageTokenizerTraining
from tasks.context import StepContext
from tasks.encode.transforms import Pixels
from tasks.fingerprint import folder_of, trained_fingerprint, trained_with
from tasks.progress import Progress
from tasks.sheets import png
from tasks.steps import BY_NAME
from tasks.train.evaluations import forget, sheet_name, sheet_steps, thin
from tasks.train.imported import import_image_tokenizer
from tasks.train.launch import StopRequest, launch
from tasks.train.pictures import FACES, HELD_OUT, OBJECTS, TRAINING, collect, discard, load_boxes, load_pictures
from tasks.train.weights import check_weights, local_weights, require_same_weights

if TYPE_CHECKING:
    from torch import Tensor

    from model.image_tokenizer.load import ImageTokenizer

STEP = "image-tokenizer"
RECONSTRUCTIONS = "reconstructions.png"
CURVES = "curves.png"
SHOWN = 48
SHOWN_A_ROW = 12
SHOWN_SIDE = 128
BATCH = 64
"""Pictures measured at once, of up to 128² pixels; of larger ones fewer, so that progress is seen."""
COUNTED = 1024
"""Pictures, at most, that are measured when training is over: this process does so alone, on its CPU."""


def run(context: StepContext) -> None:
    """Trains, measures and commits the step."""
    from model.image_tokenizer.train import remove_checkpoints

    context.manifest("select")
    if context.recipe.image_tokenizer_import.file is not None:
        import_image_tokenizer(context)
        return
    check_weights(context.recipe)
    _require_own_weights(context)
    collect(context)
    if not context.store().size(TRAINING):
        raise RecipeError("no source has a readable picture that is not held out: there is nothing to train on")
    launch(context, train_worker, arguments(context))
    finish(context)
    discard(context.store())
    remove_checkpoints(context.store())


def _require_own_weights(context: StepContext) -> None:
    inputs = {name: context.fingerprints[name] for name in BY_NAME[STEP].inputs}
    if trained_fingerprint(context.recipe, inputs, trained_with(context.recipe)) != context.fingerprint:
        raise SourceError(
            "the files of image_tokenizer_training.perceptual_weights or face_network changed since this step was "
            "submitted; run the recipe again"
        )


def arguments(context: StepContext) -> dict[str, Any]:
    """What every worker is given, by value."""
    recipe = context.recipe
    return {
        "config": recipe.image_tokenizer,
        "training": recipe.image_tokenizer_training,
        "resources": recipe.resources,
        "seed": recipe.seed,
        "folder": recipe.folder,
        "faces": recipe.scan.faces,
        "digests": trained_with(recipe),
        "fingerprint": context.fingerprint,
        "store": context.store().root,
        "workdir": context.root,
        "job": context.job,
    }


def train_worker(arguments: dict[str, Any]) -> None:
    """One worker of the training. Everything comes in by value; everything goes out through the step's folder."""
    import torch
    from PIL import Image

    from model.image_tokenizer.batches import Regions
    from model.image_tokenizer.train import checkpoint_step, train
    from model.training.optimizer import use_bf16

    resources: ResourcesConfig = arguments["resources"]
    store, config, fingerprint = Storage(arguments["store"]), arguments["config"], arguments["fingerprint"]
    progress = Progress(Storage(arguments["workdir"]), arguments["job"])
    # On CPUs only by name: whether bf16 pays there for models as narrow as are trained on them was not measured.
    bf16 = resources.precision == "bf16" or (resources.accelerator is not None and use_bf16(resources))
    training: ImageTokenizerTraining = arguments["training"]

    def report(step: int, figures: dict[str, float]) -> None:
        note = f"PSNR {figures['psnr']:.1f} dB, {figures['codebook_used']:.0%} of the codes in use"
        if "held_out_psnr" in figures:
            note += f"; held-out {figures['held_out_psnr']:.1f} dB"
        progress.update(step, training.steps, "steps", note=note)

    def show(step: int, sheet: Pixels) -> None:
        name = sheet_name(step)
        store.put(name, png(Image.fromarray(sheet)))
        progress.picture = f"{folder_of(STEP, fingerprint)}/{name}"
        thin(store, training.evaluate_every)

    require_same_weights(training, arguments["folder"], arguments["digests"], faces=arguments["faces"])
    forget(store, checkpoint_step(store))
    with local_weights(training, arguments["folder"]) as training_here:
        train(
            config,
            training_here,
            load_pictures(store, TRAINING, config.resolution),
            store,
            regions=Regions(*(load_boxes(store, name, training.region_boxes) for name in (FACES, OBJECTS))),
            held_out=load_pictures(store, HELD_OUT, config.resolution),
            seed=arguments["seed"],
            identity=fingerprint,
            device="cpu" if resources.accelerator is None else f"cuda:{torch.cuda.current_device()}",
            precision="bf16" if bf16 else "fp32",
            resources=resources,
            report=report,
            show=show,
            should_stop=StopRequest(arguments["workdir"], arguments["job"]),
        )


def finish(context: StepContext) -> None:
    """Measures the trained tokenizer, draws reconstructions and commits the step.

    Facts: ``psnr`` (dB), ``ssim`` and ``l1`` (of values 0 … 1) of reconstructions of held-out pictures, or of training
    pictures where none are held out (``measured_on`` says which); ``held_out``: what the training's last look at
    ``evaluate_pictures`` of them found, with ``lpips`` and ``rfid`` where weights are given; ``codebook_used`` (share)
    and ``perplexity`` of the codes of training pictures; under ``pictures`` how many show faces and salient objects.
    """
    from model.image_tokenizer.load import CONFIG, WEIGHTS, load_image_tokenizer
    from model.training.monitors import METRICS, read_metrics
    from tasks.train.curves import curves_png

    store, side = context.store(), context.recipe.image_tokenizer.resolution
    boxes = context.recipe.image_tokenizer_training.region_boxes
    tokenizer = load_image_tokenizer(store)
    training, held_out = (load_pictures(store, name, side) for name in (TRAINING, HELD_OUT))
    shown = {name: int((load_boxes(store, name, boxes)[:, :, 2] > 0).any(1).sum()) for name in (FACES, OBJECTS)}
    measured = (held_out if len(held_out) else training)[:COUNTED]
    sheets = [sheet_name(step) for step in sheet_steps(store)]
    progress = Progress(context.workdir, context.job)
    progress.picture = f"{folder_of(STEP, context.fingerprint)}/{sheets[-1]}" if sheets else ""
    counted = training[:COUNTED]

    def report(done: int) -> None:
        progress.update(done, len(measured) + len(counted), "pictures", note="measuring pictures")

    quality, sheet = measure(tokenizer, measured, report)
    store.put(RECONSTRUCTIONS, sheet)
    lines = read_metrics(store)
    store.put(CURVES, curves_png(lines))
    looks = [line["held_out"] for line in lines if "held_out" in line]
    context.finish(
        files=[
            *(entry_of_file(store, name) for name in (CONFIG, METRICS, WEIGHTS, CURVES, *sheets)),
            entry(RECONSTRUCTIONS, sheet),
        ],
        facts={
            **quality,
            **codebook_use(tokenizer, counted, lambda done: report(len(measured) + done)),
            **({"held_out": looks[-1]} if looks else {}),
            "measured_on": "held-out" if len(held_out) else "training",
            "pictures": {
                "training": len(training),
                "held_out": len(held_out),
                "with_faces": shown[FACES],
                "with_objects": shown[OBJECTS],
            },
            "parameters": sum(p.numel() for p in tokenizer.model.parameters()),
            "steps": context.recipe.image_tokenizer_training.steps,
        },
    )


def measure(
    tokenizer: ImageTokenizer, pictures: Pixels, report: Callable[[int], None] = lambda done: None
) -> tuple[dict[str, float], bytes]:
    """Mean psnr, ssim and l1 of reconstructions of (n, side, side, 3) uint8, and a PNG sheet of the first of them.

    ``report`` is told after each batch how many pictures are done.
    """
    from PIL import Image

    from model.image_tokenizer.losses import psnr, ssim
    from tasks.sheets import tiles

    sums = np.zeros(3)
    shown: list[tuple[Image.Image, Image.Image]] = []
    for done, before in _batches(pictures):
        after = tokenizer.decode(tokenizer.encode(before)).cpu()
        l1 = (before.float() - after.float()).abs().mean((1, 2, 3)) / 255
        sums += [float(f.double().sum()) for f in (psnr(before, after), ssim(before, after), l1)]
        for pair in zip(before, after, strict=True):
            if len(shown) < SHOWN:
                one, other = (Image.fromarray(p.permute(1, 2, 0).contiguous().numpy()) for p in pair)
                shown.append((one, other))
        report(done)
    rows = []
    for start in range(0, len(shown), SHOWN_A_ROW):
        rows += [list(row) for row in zip(*shown[start : start + SHOWN_A_ROW], strict=True)]
    means = sums / max(1, len(pictures))
    figures = {name: round(float(mean), 4) for name, mean in zip(("psnr", "ssim", "l1"), means, strict=True)}
    return figures, tiles(rows, min(SHOWN_SIDE, tokenizer.config.resolution))


def codebook_use(
    tokenizer: ImageTokenizer, pictures: Pixels, report: Callable[[int], None] = lambda done: None
) -> dict[str, float]:
    """Share of the codes that the pictures use, and the perplexity of their histogram; ``report`` as above."""
    import torch

    from model.image_tokenizer.losses import perplexity

    counts_K = torch.zeros(tokenizer.config.codes, dtype=torch.int64)
    for done, batch_BCHW in _batches(pictures):
        codes_BN = tokenizer.encode(batch_BCHW).cpu()
        counts_K += torch.bincount(codes_BN.flatten(), minlength=len(counts_K))
        report(done)
    used = float((counts_K > 0).float().mean())
    return {"codebook_used": round(used, 4), "perplexity": round(perplexity(counts_K), 2)}


def _batches(pictures_NHWC: Pixels) -> Iterator[tuple[int, Tensor]]:
    """The pictures as uint8 (B, 3, side, side), each time with how many there were."""
    import torch

    size = max(1, BATCH * 128**2 // max(128, pictures_NHWC.shape[1]) ** 2)
    for start in range(0, len(pictures_NHWC), size):
        batch_BHWC = np.array(pictures_NHWC[start : start + size])
        yield start + len(batch_BHWC), torch.from_numpy(batch_BHWC).permute(0, 3, 1, 2)
