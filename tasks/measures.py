"""The measurements of ``evaluate``, one work item each: choices, drawings, captions, replies, losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.data.loader import held_out, held_out_sources
from model.evaluation.choice import Question, accuracy, answer_scores, draw_choices
from model.evaluation.forms import ChatForm, DocumentForm, Pair
from model.evaluation.losses import losses_by_modality
from model.evaluation.nearest import distances, rank_of
from model.generation.generate import Piece, generate, split_pieces
from model.generation.modality import Modality
from model.transformer.model import Transformer
from model.vocabulary import BOS, FIRST_IMAGE_CODE
from tasks.artifacts import Tokenizers, Weights, load_tokenizers, load_weights
from tasks.context import StepContext
from tasks.pool import PartOutput
from tasks.questions import pairs_source, read_conversations, read_pairs
from tasks.sheets import tiles

SHOWN_CHOICES = 8
TILE = 192
"""Largest side of a picture kept for the report, pixels."""
REPLIED_AT_ONCE = 64

Kind = Literal["choices", "drawings", "captions", "replies", "losses"]
FormName = Literal["document", "chat"]
Found = Iterator[tuple[bool, dict[str, Any], Sequence[Sequence[Image.Image]]]]
"""What a measurement yields: whether of held-out data, its results, and the rows of its sheet of pictures."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing to measure: a work item."""

    kind: Kind
    weights: Weights
    form: FormName = "document"
    held_out: bool = False
    """For choices only, which are measured apart because they take longest; the others yield both splits."""

    @property
    def part(self) -> str:
        words: list[str] = [self.kind, self.weights]
        if self.kind == "choices":
            words += [self.form, split_name(self.held_out)]
        return "-".join(words)


def split_name(held_out: bool) -> str:
    """``trained`` or ``held-out``."""
    return "held-out" if held_out else "trained"


def measurements(context: StepContext) -> list[Measurement]:
    """All that this recipe asks for, the longest first."""
    config = context.recipe.evaluation
    ways: tuple[tuple[Weights, FormName], ...] = (
        ("pretrain", "document"),
        ("finetune", "document"),
        ("finetune", "chat"),
    )
    found = [Measurement("drawings", "finetune", "chat")] if config.drawings else []
    found += [Measurement("choices", weights, form, split) for split in splits(context) for weights, form in ways]
    found += [Measurement("losses", "pretrain"), Measurement("losses", "finetune")]
    if config.captions:
        found.append(Measurement("captions", "finetune", "chat"))
    if config.replies:
        found.append(Measurement("replies", "finetune", "chat"))
    return found


def splits(context: StepContext) -> tuple[bool, ...]:
    """Trained-on, and held-out where anything is."""
    return (False, True) if context.recipe.scan.held_out else (False,)


class Evaluator:
    """Makes one measurement at a time; loads weights, tokenizers and pairs when they are first needed."""

    def __init__(self, context: StepContext) -> None:
        self._context, self._recipe = context, context.recipe
        self._config, self._seed = context.recipe.evaluation, context.recipe.seed
        self._source = pairs_source(context)
        self._models: dict[str, Transformer] = {}

    def process(self, item: Measurement) -> PartOutput:
        """The part ``<item>.results.json``, a list, and a sheet of tiles for each entry that shows pictures."""
        measure: dict[Kind, Callable[[Measurement], Found]] = {
            "choices": self.choices,
            "drawings": self.drawings,
            "captions": self.captions,
            "replies": self.replies,
            "losses": self.losses,
        }
        side = min(TILE, self._recipe.image_tokenizer.resolution)
        results, files = [], {}
        for out, found, rows in measure[item.kind](item):
            sheet = f"{item.part}.{split_name(out)}.tiles.png" if rows else None
            if sheet is not None:
                files[sheet] = tiles(rows, side)
            about = {"kind": item.kind, "weights": item.weights, "form": item.form, "held_out": out}
            results.append({**about, "source": self._source, "sheet": sheet, "tile": side, **found})
        files[f"{item.part}.results.json"] = (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode()
        return PartOutput(item.part, self._source, files)

    # -- what measurements share

    @cached_property
    def _tokenizers(self) -> Tokenizers:
        return load_tokenizers(self._context.store)

    @cached_property
    def _pairs(self) -> list[tuple[Pair, bool]]:
        return read_pairs(self._context, self._source)

    def _model(self, weights: Weights) -> Transformer:
        if weights not in self._models:
            self._models[weights] = load_weights(self._context.store, weights)
        return self._models[weights]

    def _of(self, split: bool, limit: int) -> list[Pair]:
        return [pair for pair, out in self._pairs if out == split][:limit]

    def _document(self) -> DocumentForm:
        return DocumentForm(self._tokenizers.vocabulary, self._tokenizers.text.encode)

    def _chat(self) -> ChatForm:
        text = self._tokenizers.text.encode
        return ChatForm(self._tokenizers.vocabulary, text, self._config.question, self._config.request)

    def _ask(
        self, weights: Weights, prompts: Sequence[Sequence[int]], modality: Modality, **settings: float
    ) -> list[list[Piece]]:
        """Answers; prompt i is seeded by the recipe's seed and i, whatever the batches."""
        found: list[list[Piece]] = []
        for start in range(0, len(prompts), REPLIED_AT_ONCE):
            batch = prompts[start : start + REPLIED_AT_ONCE]
            found += generate(
                self._model(weights),
                self._tokenizers.vocabulary,
                self._tokenizers.codes_per_image,
                batch,
                self._recipe.generation.model_copy(update=settings),
                modality=modality,
                seeds=[self._seed * 1_000_003 + start + i for i in range(len(batch))],
                context=self._recipe.mix.sequence_length,
            )
        return found

    def _pixels(self, codes: Sequence[Sequence[int]]) -> Tensor:
        """(B, side·side·3) uint8 of the pictures of some codes."""
        pictures = self._tokenizers.pictures(codes)
        return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).flatten(1)

    # -- the measurements

    def choices(self, item: Measurement) -> Found:
        """Which of several names for a picture, which of several pictures for a name, by likelihood."""
        pairs = self._of(item.held_out, self._config.pictures)
        choices = min(self._config.choices, len({p.name for p in pairs}))
        if choices < 2:
            yield item.held_out, {"asked": 0, "choices": choices}, []
            return
        model, form = self._model(item.weights), self._document() if item.form == "document" else self._chat()
        drawn = draw_choices([p.name for p in pairs], choices, self._seed)
        names = answer_scores(
            model, [Question(form.ask_name(pairs[r[0]]), tuple(form.name(pairs[j]) for j in r)) for r in drawn]
        )
        # Codes are scored among codes: a picture was asked for, and generation masks all else as well.
        codes = (FIRST_IMAGE_CODE, self._tokenizers.vocabulary.eoi)
        asked = [Question(form.ask_picture(pairs[r[0]]), tuple(form.picture(pairs[j]) for j in r)) for r in drawn]
        pictures = answer_scores(model, asked, among=codes)
        # Half of all pre-training pairs begin ``<s> name BOI``, the others ``<s> BOI codes``: there the model learned
        # how likely a name or a picture is by itself.
        boi = self._tokenizers.vocabulary.boi
        any_name = Question((BOS,), tuple((*form.name(p)[:-1], boi) for p in pairs))
        any_picture = Question((BOS, boi), tuple(form.picture(p) for p in pairs))
        lifted_names = lift(names, answer_scores(model, [any_name])[0], drawn)
        lifted_pictures = lift(pictures, answer_scores(model, [any_picture], among=codes)[0], drawn)
        examples = [
            {"names": [pairs[j].name for j in r], "name_scores": rounded(a), "picture_scores": rounded(b)}
            for r, a, b in zip(drawn[:SHOWN_CHOICES], lifted_names, lifted_pictures, strict=False)
        ]
        results = {
            "asked": len(pairs),
            "choices": choices,
            "name": accuracy(names).facts(),
            "name_prior": accuracy(lifted_names).facts(),
            "picture": accuracy(pictures).facts(),
            "picture_prior": accuracy(lifted_pictures).facts(),
            "examples": examples,
        }
        shown = [[*self._tokenizers.pictures([pairs[j].codes for j in r])] for r in drawn[:SHOWN_CHOICES]]
        yield item.held_out, results, shown

    def drawings(self, item: Measurement) -> Found:
        """Pictures drawn by name, and which training picture each is nearest to, as the tokenizer shows them."""
        asked = {False: self._of(False, self._config.drawings), True: self._of(True, -(-self._config.drawings // 5))}
        # The asked ones are among the candidates even where they are held out, or the training pictures too many.
        everything = [*asked[False], *asked[True], *self._of(False, self._config.neighbours)]
        candidates = list({p.key: p for p in everything}.values())
        known_RD = self._pixels([p.codes for p in candidates])
        for out, pairs in asked.items():
            if not pairs:
                continue
            form = self._chat()
            replies = self._ask(item.weights, [form.ask_picture(p) for p in pairs], "image", max_images=1)
            codes = [reply[0].ids for reply in replies]
            away_QR = distances(self._pixels(codes), known_RD)
            right_Q = torch.tensor([candidates.index(p) for p in pairs])
            ranks, nearest = rank_of(away_QR, right_Q).tolist(), away_QR.argmin(1).tolist()
            drawings = [
                {"name": p.name, "nearest": candidates[n].name, "rank": rank, "distance": round(float(away_Q[n]), 3)}
                for p, n, rank, away_Q in zip(pairs, nearest, ranks, away_QR, strict=True)
            ]
            results = {
                "asked": len(pairs),
                "candidates": len(candidates),
                "nearest": sum(r == 1 for r in ranks),
                "among_ten": sum(r <= 10 for r in ranks),
                "drawings": drawings,
            }
            shown = zip(codes, (candidates[n].codes for n in nearest), (p.codes for p in pairs), strict=True)
            yield out, results, [[*self._tokenizers.pictures(row)] for row in shown]

    def captions(self, item: Measurement) -> Found:
        """What the model says a picture is, in its own words, most likely ones first."""
        form = self._chat()
        for out in splits(self._context):
            pairs = self._of(out, self._config.pictures)
            replies = self._ask(item.weights, [form.ask_name(p) for p in pairs], "text", temperature=0.0)
            said = [self._text(reply) for reply in replies]
            exact = sum(s == p.name for s, p in zip(said, pairs, strict=True))
            shown = pairs[: self._config.captions]
            captions = [{"name": p.name, "caption": s} for p, s in zip(shown, said, strict=False)]
            pictures = self._tokenizers.pictures([p.codes for p in shown])
            yield out, {"asked": len(pairs), "exact": exact, "captions": captions}, [[p] for p in pictures]

    def replies(self, item: Measurement) -> Found:
        """Answers to held-out conversations of every category, to be read beside the answers they were given."""
        asked = list(read_conversations(self._context, self._config.replies))
        eot = self._tokenizers.vocabulary.eot
        cuts = [ids.index(eot) + 1 for _, ids in asked]
        prompts = [ids[:at] for (_, ids), at in zip(asked, cuts, strict=True)]
        replies = self._ask(item.weights, prompts, "any", max_images=max(2, self._recipe.generation.max_images))
        sheet: list[list[Image.Image]] = []

        def shown(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
            out: list[dict[str, Any]] = []
            for piece in pieces:
                if piece.kind == "text":
                    out.append({"text": self._tokenizers.text.decode(list(piece.ids))})
                else:
                    out.append({"tile": len(sheet)})
                    sheet.append([*self._tokenizers.pictures([piece.ids])])
            return out

        vocabulary, n = self._tokenizers.vocabulary, self._tokenizers.codes_per_image
        conversations = [
            {
                "category": category,
                "prompt": shown(split_pieces(prompt, vocabulary, n)),
                "given": shown(split_pieces(ids[len(prompt) :], vocabulary, n)),
                "reply": shown(reply),
            }
            for (category, ids), prompt, reply in zip(asked, prompts, replies, strict=True)
        ]
        yield True, {"conversations": conversations}, sheet

    def losses(self, item: Measurement) -> Found:
        """Held-out losses by source and modality."""
        mix, model = self._context.store("mix"), self._model(item.weights)
        losses = {
            source: losses_by_modality(model, held_out(mix, source, self._config.losses))
            for source in held_out_sources(mix)
        }
        yield True, {"losses": losses}, []

    def _text(self, pieces: Sequence[Piece]) -> str:
        return "".join(self._tokenizers.text.decode(list(p.ids)) for p in pieces if p.kind == "text")


def lift(
    scores: Sequence[Sequence[float]], prior: Sequence[float], drawn: Sequence[Sequence[int]]
) -> list[list[float]]:
    """How much likelier each answer is made by its question: log p(answer | question) - log p(answer)."""
    return [[s - prior[j] for s, j in zip(row, own, strict=True)] for row, own in zip(scores, drawn, strict=True)]


def rounded(scores: Sequence[float]) -> list[float]:
    """Scores to three decimals: enough for a figure."""
    return [round(s, 3) for s in scores]
