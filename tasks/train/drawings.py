"""What the transformer draws while it trains, as sheets: which captions are asked for, and how the pictures are kept.

In the step's folder lie ``evaluations/step-000000400.png``, a sheet each: a row of drawn pictures, below it the
held-out pictures of the same captions as the image tokenizer shows them, and the captions. ``evaluations/prompts.json``
has the captions, and the side of the tiles, for who cuts the sheets apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from infra.errors import RecipeError
from infra.storage import Storage
from model.generation.config import GenerationConfig
from model.training.watch.config import DrawingsConfig
from model.vocabulary import Vocabulary
from tasks.context import StepContext
from tasks.fingerprint import folder_of
from tasks.progress import Progress
from tasks.sheets import FAINT, INK, WHITE, cut, fit, grid, png, wrapped
from tasks.train.evaluations import EVALUATIONS, forget, sheet_name, sheet_steps, thin

if TYPE_CHECKING:
    from model.training.watch.drawings import Codes, Drawings, Prompt
    from model.training.watch.sinks import Picture

PROMPTS = f"{EVALUATIONS}/prompts.json"
SIDE, EDGE = 128, 2
"""Side of a picture on a sheet, and the white around it, pixels."""
TILE = SIDE + 2 * EDGE
LINES = 3
"""Lines of a caption under its pictures, at most."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a training draws and where it goes, as its workers are given it."""

    prompts: list[Prompt]
    config: DrawingsConfig
    vocabulary: Vocabulary
    generation: GenerationConfig
    seed: int
    image_tokenizer: str
    """Root of its folder."""
    folder: str
    """The step's folder, as the work folder names it."""


def asked_for(context: StepContext, run: Literal["pretrain", "finetune"]) -> Asked | None:
    """What the recipe wants drawn, for captions of held-out pairs; None where it wants nothing, or none are held out.

    They are put as evaluation puts them: as documents in pre-training, as a user's request in fine-tuning.

    Raises:
        RecipeError: The image tokenizer has no decoder.
    """
    wanted = context.recipe.watch.drawings
    if not wanted.every:
        return None
    from model.evaluation.forms import ChatForm, DocumentForm, Pair
    from model.image_tokenizer.load import NO_DECODER
    from model.text_tokenizer.codec import TextTokenizer
    from model.training.watch.drawings import Prompt
    from tasks.questions import held_out_pairs, pairs_source

    recipe = context.recipe
    if not context.manifest("image-tokenizer").facts.get("decoder", True):
        raise RecipeError(f"watch.drawings.every is {wanted.every}, and {NO_DECODER} Or set it to 0.")
    context.manifest("text-tokenizer")
    text = TextTokenizer.load(context.store("text-tokenizer"))
    form = DocumentForm(text.vocabulary, text.encode)
    if run == "finetune":
        form = ChatForm(text.vocabulary, text.encode, recipe.evaluation.question, recipe.evaluation.request)
    longest = recipe.mix.sequence_length - recipe.image_tokenizer.codes_per_image - 1  # EOI is drawn, too

    def fits(pair: Pair) -> bool:
        return len(form.ask_picture(pair)) <= longest

    source = pairs_source(context)
    pairs = held_out_pairs(context, source, fits, wanted.pictures)
    if not pairs:
        print(f"watch.drawings: source {source} has no held-out pair, so that nothing is drawn", flush=True)
        return None
    return Asked(
        [Prompt(pair.name, form.ask_picture(pair), pair.codes) for pair in pairs],
        *(wanted, recipe.vocabulary, recipe.generation, recipe.seed),
        image_tokenizer=context.store("image-tokenizer").root,
        folder=folder_of(context.step, context.fingerprint),
    )


def start_drawing(asked: Asked | None, store: Storage, progress: Progress) -> Drawings | None:
    """What draws in a worker of a training; ``store`` is the step's folder, and ``progress`` hears of every sheet."""
    if asked is None:
        return None
    from model.training.watch.drawings import Drawings

    show = Sheets(asked, store, progress)
    return Drawings(asked.prompts, asked.config, asked.vocabulary, asked.generation, asked.seed, show)


class Sheets:
    """Makes and keeps the sheets of a training, on its first worker.

    The image tokenizer is loaded for the first sheet and kept, on the CPU: a GPU that is full of training may have no
    room for it.
    """

    def __init__(self, asked: Asked, store: Storage, progress: Progress) -> None:
        self._asked, self._store, self._progress = asked, store, progress
        self._words = [prompt.words for prompt in asked.prompts]
        self._originals: list[Image.Image] = []

    def __call__(self, step: int, drawn_PN: Codes) -> Picture:
        """Decodes, keeps and gives back a sheet, uint8 (height, width, 3)."""
        from model.image_tokenizer.load import load_image_tokenizer
        from tasks.artifacts import decoded

        if not self._originals:
            self._tokenizer = load_image_tokenizer(Storage(self._asked.image_tokenizer))
            self._originals = decoded(self._tokenizer, [prompt.codes for prompt in self._asked.prompts])
            about = json.dumps({"tile": TILE, "prompts": self._words}, ensure_ascii=False).encode()
            if self._store.get_or_none(PROMPTS) != about:
                forget(self._store, 0)  # sheets of other captions, with which these make no course
                self._store.put(PROMPTS, about)
        picture = sheet(self._words, decoded(self._tokenizer, drawn_PN.tolist()), self._originals, step)
        forget(self._store, step)  # sheets of before a restart or a rollback
        self._store.put(sheet_name(step), png(picture, small=False))
        thin(self._store, self._asked.config.every)
        self._progress.picture = f"{self._asked.folder}/{sheet_name(step)}"
        return np.asarray(picture)


def sheet(words: list[str], drawn: list[Image.Image], originals: list[Image.Image], step: int) -> Image.Image:
    """Two rows of tiles, drawn pictures and originals, and under them the captions and what is what."""
    rows = [[ImageOps.expand(fit(p, SIDE), EDGE, WHITE) for p in row] for row in (drawn, originals)]
    tiles, font, line = grid(rows, TILE), _font(), 15
    picture = Image.new("RGB", (max(tiles.width, 5 * TILE), tiles.height + (LINES + 2) * line + 6), WHITE)
    picture.paste(tiles, (0, 0))
    draw = ImageDraw.Draw(picture)
    for column, caption in enumerate(words):
        for row, text in enumerate(wrapped(draw, caption, TILE - 6, font, LINES)):
            draw.text((column * TILE + 3, tiles.height + 3 + row * line), text, INK, font)
    about = f"Above: drawn after {step:,} steps. Below: the held-out pictures, as the image tokenizer shows them."
    draw.text((3, tiles.height + 3 + (LINES + 1) * line - 6), about, FAINT, font)
    return picture


def _font() -> ImageFont.FreeTypeFont:
    """matplotlib's own, which has more scripts than Pillow's; what it lacks is a box here, and whole in the report."""
    import matplotlib as mpl

    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 11)


@dataclass(frozen=True, slots=True)
class Course:
    """What became of one caption while the training went on."""

    words: str
    original: Image.Image
    drawn: list[Image.Image]
    """At the steps of the course."""


def sheet_files(store: Storage) -> list[str]:
    """The files that sheets left in a training's folder."""
    sheets = [sheet_name(step) for step in sheet_steps(store)]
    return [*sheets, PROMPTS] if sheets else []


def course(store: Storage, most: int) -> tuple[list[int], list[Course]]:
    """At most ``most`` of a training's sheets, evenly spread up to the last: their steps, and caption by caption."""
    about, steps = store.get_or_none(PROMPTS), sheet_steps(store)
    if about is None or not steps:
        return [], []
    chosen = sorted({steps[round(i * (len(steps) - 1) / max(1, most - 1))] for i in range(most)})
    found = json.loads(about)
    sheets = [cut(store.get(sheet_name(step)), found["tile"]) for step in chosen]
    inner = (EDGE, EDGE, found["tile"] - EDGE, found["tile"] - EDGE)
    return chosen, [
        Course(words, sheets[-1][1][column].crop(inner), [rows[0][column].crop(inner) for rows in sheets])
        for column, words in enumerate(found["prompts"])
    ]
