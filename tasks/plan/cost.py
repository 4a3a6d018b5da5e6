"""``calumma plan``: parts, bytes, requests, hours and money, each with its arithmetic. Nothing is started."""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import RecipeError
from infra.words import size_in_words
from tasks.mix.plan import Outline, outline
from tasks.plan.data import BYTES_A_TOKEN, SourceSize, source_sizes, supplies
from tasks.plan.lines import Line
from tasks.plan.rates import Rates
from tasks.plan.training import device_hours, share_of, training_lines
from tasks.recipe import Recipe

REFERENCE_FLOPS = 550e9
"""Of encoding one 512x512 picture with Chameleon's encoder; ``Rates.encode`` counts such pictures."""


@dataclass(frozen=True)
class CostPlan:
    """Everything ``calumma plan`` prints."""

    recipe: str
    sources: tuple[SourceSize, ...]
    mixture: Outline | None
    """None where one source alone is planned, or these sizes cannot bear the mixture."""
    infeasible: str
    """Why they cannot, and the nearest plan that they can."""
    data: tuple[Line, ...]
    training: tuple[Line, ...]
    rates: Rates

    @property
    def cost(self) -> float:
        return sum(line.cost for line in (*self.data, *self.training))


def plan_cost(recipe: Recipe, rates: Rates, source: str | None = None) -> CostPlan:
    """The arithmetic of a recipe under some rates; with ``source`` of that source alone, up to its documents.

    RecipeError if there is no source of that name.
    """
    sources = source_sizes(recipe, source)
    if source is not None:
        lines = tuple(x for x in _data(recipe, sources, rates) if x.step not in ("mix", "all"))
        return CostPlan(f"{recipe.name}, {source}", sources, None, "", lines, (), rates)
    mixture, infeasible = None, ""
    try:
        mixture = outline(recipe.mix, supplies(recipe, sources))
    except RecipeError as e:  # sizes may be estimates: what they cannot bear is said, and the rest is planned
        infeasible = str(e)
    return CostPlan(
        recipe.name, sources, mixture, infeasible, _data(recipe, sources, rates), _training(recipe, rates), rates
    )


def _data(recipe: Recipe, sources: tuple[SourceSize, ...], rates: Rates) -> tuple[Line, ...]:
    pictures, samples, parts = (sum(getattr(s, n) for s in sources) for n in ("pictures", "samples", "items"))
    tokens, read = sum(s.text_tokens for s in sources), sum(s.bytes for s in sources)
    text, codes = tokens * BYTES_A_TOKEN, recipe.image_tokenizer.codes_per_image
    tables, stored = samples * rates.scan_row.value, _stored(pictures, samples, text, codes, rates)
    documents = 2 * ((codes + 2) * pictures + tokens)
    sequences = -(-recipe.mix.tokens // recipe.mix.sequence_length)
    packed = sequences * (recipe.mix.sequence_length * 17 / 8 + 1 / 8)
    written = {"scan": tables, "encode": stored, "tokenize": documents, "mix": packed}
    reads = {"scan": read, "encode": read + tables, "tokenize": stored, "mix": documents}
    lines = [
        Line(
            "scan",
            "hash, measure, filter",
            f"{pictures:,} pictures / {rates.scan.value:,.0f} + {size_in_words(text)} / "
            f"{size_in_words(rates.scan_text.value)} a s and core",
            *_core_hours(pictures / rates.scan.value + text / rates.scan_text.value, rates),
        ),
        Line(
            "encode",
            "decode, resize, crop",
            f"{pictures:,} pictures / {rates.decode.value:,.0f} a s and core",
            *_core_hours(pictures / rates.decode.value, rates),
        ),
        _encoding(recipe, pictures, rates),
        Line(
            "tokenize",
            "text to ids",
            f"{tokens:,} tokens / {_short(rates.tokenize.value)} a s and core",
            *_core_hours(tokens / rates.tokenize.value, rates),
        ),
        Line(
            "mix",
            "pack and write",
            f"{recipe.mix.tokens:,} tokens / {_short(rates.pack.value)} a s and core",
            *_core_hours(recipe.mix.tokens / rates.pack.value, rates),
        ),
        Line("encode", "codes", f"{pictures:,} pictures × {codes:,} codes × 2 B", size_in_words(2 * codes * pictures)),
        Line(
            "encode",
            "sample store",
            f"codes × {rates.codes_ratio.value:g} + {samples:,} samples × {rates.sample_row.value:,.0f} B + "
            f"{size_in_words(text)} of text × {rates.text_ratio.value:g}",
            size_in_words(stored),
        ),
        Line(
            "tokenize", "document store", f"({pictures:,} × {codes + 2:,} + {tokens:,}) × 2 B", size_in_words(documents)
        ),
        Line(
            "mix",
            "sequences",
            f"{sequences:,} × ({recipe.mix.sequence_length:,} × 2 B + 1 bit a token + 8 B / 64)",
            size_in_words(packed),
        ),
    ]
    total = sum(written.values())
    lines.append(
        Line(
            "all",
            "stored for a month",
            f"{size_in_words(total)} × ${rates.stored_month.value:g} a GB",
            f"{size_in_words(total)} a month",
            total / 1e9 * rates.stored_month.value,
        )
    )
    for step, size in reads.items():
        count = round(size / rates.request_bytes.value) + parts * 2 + -(-parts // 1000)
        lines.append(
            Line(
                step,
                "requests that read",
                f"{size_in_words(size)} / {size_in_words(rates.request_bytes.value)} + {parts:,} parts × 2 "
                "+ lists of 1,000",
                f"{count:,}",
                count / 1000 * rates.read_requests.value,
            )
        )
    for step, size in written.items():
        made = parts if step != "mix" else -(-sequences // recipe.mix.file_sequences) * 4
        count = round(size / rates.upload_bytes.value) + made * 4
        lines.append(
            Line(
                step,
                "requests that write",
                f"{size_in_words(size)} / {size_in_words(rates.upload_bytes.value)} + {made:,} files "
                "× (begin, end, check, manifest)",
                f"{count:,}",
                count / 1000 * rates.write_requests.value,
            )
        )
    return tuple(lines)


def _stored(pictures: int, samples: int, text: float, codes: int, rates: Rates) -> float:
    packed = 2 * codes * pictures * rates.codes_ratio.value
    return packed + samples * rates.sample_row.value + text * rates.text_ratio.value


def _encoding(recipe: Recipe, pictures: int, rates: Rates) -> Line:
    flops = image_tokenizer_cost(recipe)[1]
    rate = rates.encode.value * REFERENCE_FLOPS / flops
    hours = pictures / rate / 3600
    return Line(
        "encode",
        "pictures to codes",
        f"{pictures:,} pictures / {rate:,.4g} a s and device ({flops / 1e9:,.1f} GFLOP each)",
        f"{hours:,.1f} {rates.device}-hours" if hours >= 0.1 else f"{hours * 3600:,.0f} {rates.device}-seconds",
        hours * rates.device_hour.value,
    )


def _training(recipe: Recipe, rates: Rates) -> tuple[Line, ...]:
    tokenizer_parameters, _, training_flops = image_tokenizer_cost(recipe)
    training = recipe.image_tokenizer_training
    seen = 0 if recipe.image_tokenizer_import.file is not None else training.steps * training.batch
    return (
        Line("image-tokenizer", "parameters", "encoder, decoder, codebook", f"{tokenizer_parameters:,}"),
        Line(
            "image-tokenizer",
            "training",
            f"{seen:,} pictures × {training_flops / 1e9:,.1f} GFLOP / ({share_of(rates)})",
            *device_hours(seen * training_flops, rates),
        ),
        *training_lines(recipe, rates),
    )


def image_tokenizer_cost(recipe: Recipe) -> tuple[int, float, float]:
    """(parameters, FLOPs to encode a picture, FLOPs to train on one: three forward passes of the whole)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model.image_tokenizer.vqgan import VQModel

    config = recipe.image_tokenizer
    with torch.device("meta"):
        model = VQModel(config)
        x_BCHW = torch.zeros(1, 3, config.resolution, config.resolution)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        z_BCHW = model.latents(x_BCHW)
        encode = float(whole.get_total_flops())
        model.decode_latents(z_BCHW)
    search = 2.0 * config.codes_per_image * config.codes * config.embed_dim
    return sum(p.numel() for p in model.parameters()), encode + search, 3.0 * (whole.get_total_flops() + search)


def _core_hours(seconds: float, rates: Rates) -> tuple[str, float]:
    hours = seconds / 3600
    return (
        f"{hours:,.1f} core-hours" if hours >= 0.1 else f"{seconds:,.0f} core-seconds"
    ), hours * rates.core_hour.value


def _short(n: float) -> str:
    return f"{n / 1e6:,.4g} M" if n >= 1e6 else f"{n:,.0f}"
