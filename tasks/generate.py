"""``calumma generate``: a prompt and pictures to a trained model, text and pictures back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from infra.errors import SourceError
from infra.home import whole_name
from infra.storage import Storage
from model.generation.generate import Piece, generate
from model.generation.modality import Modality
from tasks.artifacts import Tokenizers, finished_folders, load_tokenizers, load_weights
from tasks.encode.decode import ImageError
from tasks.encode.transforms import transform
from tasks.recipe import Recipe
from tasks.status import last_recipe


@dataclass(frozen=True, slots=True)
class Answer:
    """A stretch of an answer: its text, or where its picture was written."""

    text: str = ""
    picture: Path | None = None

    def __str__(self) -> str:
        return self.text if self.picture is None else f"[picture] {self.picture}"


def generate_in(
    workdir: Path | str,
    prompt: str,
    *,
    images: Sequence[Path] = (),
    modality: Modality = "any",
    out: Path = Path("generated"),
    seed: int = 0,
    recipe: Recipe | None = None,
) -> list[Answer]:
    """Answers a prompt with a work folder's fine-tuned model; pictures go to ``out`` as PNG files.

    Args:
        workdir: A work folder, or ``s3://BUCKET/PREFIX``, whose last run, or ``recipe``, is fine-tuned.
        prompt: What the user says. It is text throughout: names of control ids in it mean nothing.
        images: Pictures before the prompt, resized whole and padded to a square, as in fine-tuning.
        modality: ``text``, ``image`` or ``any``.
        out: Folder for the pictures; made when the first is written.
        seed: Equal seeds give equal answers.
        recipe: None: the one that was last run there.

    Raises:
        CalummaError: No run there, a picture that cannot be read, a prompt too long for the model's context.
    """
    root = whole_name(str(workdir))
    recipe = recipe or last_recipe(root)
    store = finished_folders(Storage(root), recipe)
    model = load_weights(store, "finetune")  # before the tokenizers: what is missing first is what to say
    tokenizers = load_tokenizers(store)
    side = tokenizers.image.config.resolution
    ids = prompt_ids(prompt, [prompt_picture(p, recipe, side) for p in images], tokenizers)
    (pieces,) = generate(
        model,
        tokenizers.vocabulary,
        tokenizers.codes_per_image,
        [ids],
        recipe.generation,
        modality=modality,
        seeds=[seed],
        context=recipe.mix.sequence_length,
    )
    return write_pieces(pieces, tokenizers, out, seed)


def prompt_picture(path: Path, recipe: Recipe, side: int) -> Image.Image:
    """A picture of a prompt as the image tokenizer reads it: upright, whole, padded to a square."""
    try:
        data = Path(path).read_bytes()
        square = transform(recipe.pictures.transform).pad_file(data, side, recipe.scan.max_pixels)
    except OSError as e:
        raise SourceError(f"{path}: cannot be read ({e.strerror}); --image takes a picture file") from e
    except ImageError as e:
        raise SourceError(f"{path}: not a picture that can be shown to the model ({e})") from e
    return Image.fromarray(square)


def prompt_ids(prompt: str, pictures: Sequence[Image.Image], tokenizers: Tokenizers) -> list[int]:
    """The user's turn as ids: ``<s>``, the pictures, the text, end of turn."""
    turn = {"role": "user", "content": [*tokenizers.codes(pictures), prompt]}
    return tokenizers.interleaver().conversations([[turn]]).ids[0]


def write_pieces(pieces: Sequence[Piece], tokenizers: Tokenizers, out: Path, seed: int) -> list[Answer]:
    """Pieces as text, and as PNG files that are never written over one another."""
    drawn = iter(tokenizers.pictures([p.ids for p in pieces if p.kind == "image"]))
    answers = []
    for piece in pieces:
        if piece.kind == "text":
            answers.append(Answer(text=tokenizers.text.decode(list(piece.ids))))
            continue
        out.mkdir(parents=True, exist_ok=True)
        number = 1
        while (path := out / f"picture-{seed}-{number}.png").exists():
            number += 1
        next(drawn).save(path)
        answers.append(Answer(picture=path))
    return answers
