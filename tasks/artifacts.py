"""What training made, loaded for use: transformer, both tokenizers, vocabulary; and where it lies in a work folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from infra.errors import SourceError, StepFailed
from infra.storage import Storage
from infra.store.commit import load_step
from model.image_tokenizer.load import ImageTokenizer, load_image_tokenizer
from model.processor.interleave import Interleaver, Layout
from model.text_tokenizer.codec import TextTokenizer
from model.transformer.load import load_transformer
from model.transformer.model import Transformer
from model.vocabulary import BOS, EOS, FIRST_IMAGE_CODE, PAD, Vocabulary
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe
from tasks.scan.config import ScanConfig

Weights = Literal["pretrain", "finetune"]
DECODE_BATCH = 64
log = logging.getLogger("calumma")


@dataclass(frozen=True)
class Tokenizers:
    """Both tokenizers and the vocabulary that they share: text and pictures to ids and back."""

    text: TextTokenizer
    image: ImageTokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        return self.text.vocabulary

    @property
    def codes_per_image(self) -> int:
        return self.image.config.codes_per_image

    def interleaver(self, transform_name: str = "reference-1") -> Interleaver:
        """Documents and conversations to ids and back; pictures (PIL or ``pathlib.Path``) are cropped and encoded.

        They are made upright, on white and sRGB first, as in ``scan``. SourceError for a file that cannot be opened,
        ImageError for one that is no picture or too large.
        """
        from tasks.encode.transforms import transform

        crop, side = transform(transform_name).crop, self.image.config.resolution

        def encode_images(pictures: list[Image.Image | Path]) -> list[list[int]]:
            return self.codes([Image.fromarray(crop(_upright(picture), side)) for picture in pictures])

        vocabulary = self.vocabulary
        layout = Layout(
            bos=BOS,
            pad=PAD,
            eos=EOS,
            eot=vocabulary.eot,
            boi=vocabulary.boi,
            eoi=vocabulary.eoi,
            text_start=vocabulary.text_start,
            image_codes=vocabulary.image_codes,
            codes_per_image=self.codes_per_image,
            first_code=FIRST_IMAGE_CODE,
        )
        return Interleaver(layout, self.text.encode, self.text.decode, encode_images)

    def pictures(self, codes: Sequence[Sequence[int]]) -> list[Image.Image]:
        """Pictures of codebook indices, RGB, at the image tokenizer's resolution."""
        return decoded(self.image, codes)

    def codes(self, pictures: Sequence[Image.Image]) -> list[list[int]]:
        """Codebook indices of square RGB pictures at the image tokenizer's resolution."""
        found: list[list[int]] = []
        for start in range(0, len(pictures), DECODE_BATCH):
            pixels = np.stack([np.asarray(p, dtype=np.uint8) for p in pictures[start : start + DECODE_BATCH]])
            found += self.image.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()).tolist()
        return found


def decoded(tokenizer: ImageTokenizer, codes: Sequence[Sequence[int]]) -> list[Image.Image]:
    """Pictures of codebook indices, RGB, at the image tokenizer's resolution."""
    found = []
    for start in range(0, len(codes), DECODE_BATCH):
        batch = torch.tensor([list(c) for c in codes[start : start + DECODE_BATCH]])
        found += [Image.fromarray(p) for p in tokenizer.decode(batch).permute(0, 2, 3, 1).cpu().numpy()]
    return found


def _upright(picture: Image.Image | Path) -> Image.Image:
    from model.processor.colour import upright_rgb
    from tasks.encode.decode import ImageError, open_image

    if isinstance(picture, Image.Image):
        try:
            return upright_rgb(picture)
        except (NotImplementedError, OSError, ValueError) as e:
            raise ImageError("unsupported", f"a picture of mode {picture.mode} cannot be read ({e})") from e
    if not isinstance(picture, Path):
        raise TypeError(f"{type(picture).__name__} is no picture; expected PIL's or a pathlib.Path")
    try:
        return open_image(picture.read_bytes(), ScanConfig().max_pixels)
    except OSError as e:
        raise SourceError(f"{picture}: cannot be opened ({e.strerror}); correct the path") from e
    except ImageError as e:
        raise ImageError(e.error_class, f"{picture}: {e.message}") from e


def load_tokenizers(store: Callable[[str], Storage]) -> Tokenizers:
    """Reads both tokenizers; ``store`` gives a finished step's folder."""
    return Tokenizers(TextTokenizer.load(store("text-tokenizer")), load_image_tokenizer(store("image-tokenizer")))


def load_weights(store: Callable[[str], Storage], weights: Weights) -> Transformer:
    """The transformer as ``pretrain`` or ``finetune`` left it, in evaluation mode."""
    return load_transformer(store(weights))


def finished_folders(workdir: Storage, recipe: Recipe) -> Callable[[str], Storage]:
    """Gives the folders of what a fine-tuned model needs; StepFailed, with what to do, for a step that is not finished.

    Where the recipe's own model is not there, because its sources are gone or this version of Calumma would make it
    anew, the newest fine-tuned model of the work folder is taken, found through the manifests, and that is said.
    """
    try:
        prints = fingerprints(recipe, workdir)
    except SourceError:
        prints = {}

    def finished(step: str) -> bool:
        return step in prints and load_step(workdir.sub(folder_of(step, prints[step]))) is not None

    if not finished("finetune") and (newest := _newest(workdir)):
        prints = newest
        log.warning("using the newest fine-tuned model, %s", folder_of("finetune", prints["finetune"]))

    def store(step: str) -> Storage:
        if not finished(step):
            raise StepFailed(
                f"{workdir.root}: step {step} is not finished for this folder's recipe. "
                f"Run it: calumma run {workdir.root}/recipe.yaml --workdir {workdir.root}"
            )
        return workdir.sub(folder_of(step, prints[step]))

    return store


def made_from(workdir: Storage, step: str, fingerprint: str) -> dict[str, str]:
    """Fingerprints of a finished step and of all that it was made from, by step, as the manifests say."""
    prints: dict[str, str] = {}
    todo = [(step, fingerprint)]
    while todo:
        name, found = todo.pop()
        prints[name] = found
        manifest = load_step(workdir.sub(folder_of(name, found)))
        todo += (manifest.inputs if manifest else {}).items()
    return prints


def _newest(workdir: Storage) -> dict[str, str]:
    """What :func:`made_from` says of the newest finished fine-tuning; empty where there is none."""
    ended = (f.name for f in workdir.find("runs/jobs") if f.name.endswith("/record.json"))
    records = map(json.loads, workdir.get_many(name for name in ended if name.startswith("runs/jobs/finetune-")))
    done = [r for r in records if load_step(workdir.sub(folder_of("finetune", r["fingerprint"]))) is not None]
    newest = max(done, key=lambda r: float(r["started"]), default=None)
    return {} if newest is None else made_from(workdir, "finetune", newest["fingerprint"])
