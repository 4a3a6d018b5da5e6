"""The steps, their order, what each reads, and which sections of the recipe decide it: the table of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Step:
    """One step. ``version`` is raised whenever its code would write other bytes from the same inputs."""

    name: str
    module: str
    """Module with ``run(context: StepContext) -> None``; it commits the step's manifest."""
    about: str
    inputs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    """Keys of the recipe that its output depends on."""
    version: int = 1


STEPS: tuple[Step, ...] = (
    Step(
        "scan",
        "tasks.scan.run",
        "lists work items; hashes, measures and filters every sample",
        sections=("sources", "scan", "seed"),
        version=2,
    ),
    Step("select", "tasks.scan.select", "drops duplicates across each source", ("scan",), ("select",), version=2),
    Step(
        "image-tokenizer",
        "tasks.train.image_tokenizer",
        "trains the VQ-GAN, or imports one: pictures to codes and back",
        ("select",),
        ("image_tokenizer", "image_tokenizer_training", "image_tokenizer_import", "pictures", "seed"),
        version=3,
    ),
    Step(
        "encode",
        "tasks.encode.run",
        "turns every picture into codes: the sample store",
        ("select", "image-tokenizer"),
        ("encode", "pictures"),
        version=3,
    ),
    Step(
        "text-tokenizer",
        "tasks.train.text_tokenizer",
        "trains SentencePiece on the sources' texts, or imports a tokenizer",
        ("select",),
        ("text_tokenizer", "vocabulary", "seed"),
        version=3,
    ),
    Step(
        "tokenize",
        "tasks.documents.run",
        "turns every sample into ids: the document store",
        ("encode", "text-tokenizer"),
        ("vocabulary", "removal"),
        version=2,
    ),
    Step(
        "mix",
        "tasks.mix.run",
        "plans the stages, packs documents, writes sequences",
        ("encode", "tokenize"),
        ("mix", "finetune_mix", "vocabulary", "seed"),
        version=2,
    ),
    Step(
        "pretrain",
        "tasks.train.pretrain",
        "trains the transformer over both stages, or imports one",
        ("mix",),
        ("model", "model_import", "pretrain", "vocabulary", "seed"),
    ),
    Step(
        "finetune",
        "tasks.train.finetune",
        "aligns it on conversations, answers only",
        ("mix", "pretrain"),
        ("finetune", "seed"),
    ),
    Step(
        "evaluate",
        "tasks.evaluate",
        "choices by likelihood, drawings, captions, losses",
        ("encode", "image-tokenizer", "text-tokenizer", "mix", "pretrain", "finetune"),
        ("evaluation", "generation", "seed"),
    ),
    Step(
        "export",
        "tasks.export",
        "writes a folder that transformers loads",
        ("image-tokenizer", "text-tokenizer", "finetune"),
        ("vocabulary", "export"),
        version=2,
    ),
    Step(
        "report",
        "tasks.report.run",
        "one HTML file with everything worth looking at",
        (
            *("scan", "select", "image-tokenizer", "encode", "text-tokenizer", "tokenize", "mix"),
            *("pretrain", "finetune", "evaluate", "export"),
        ),
    ),
)

BY_NAME: dict[str, Step] = {step.name: step for step in STEPS}
NAMES: tuple[str, ...] = tuple(BY_NAME)
STORES: tuple[str, ...] = ("scan", "select", "encode", "tokenize")
"""The steps that keep samples part by part, to which a retry adds."""


def chosen_steps(first: str | None = None, only: str | None = None, last: str | None = None) -> tuple[str, ...]:
    """The steps to run: all, those from ``first`` on, those up to ``last``, or just ``only``."""
    for name in (first, only, last):
        if name is not None and name not in BY_NAME:
            raise RecipeError(f"no step is named {name!r}; the steps are {', '.join(NAMES)}")
    if only is not None:
        return (only,)
    chosen = NAMES[0 if first is None else NAMES.index(first) : None if last is None else NAMES.index(last) + 1]
    if not chosen:
        raise RecipeError(f"no step lies between {first} and {last}; the steps are {', '.join(NAMES)}")
    return chosen
