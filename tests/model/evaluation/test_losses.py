from __future__ import annotations

import numpy as np
import pytest
import torch

from model.data.loader import make_batch
from model.evaluation.losses import losses_by_modality
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer
from model.vocabulary import PAD, Vocabulary

V = Vocabulary(image_codes=8, text_start=20, size=300)
PICTURE = [V.boi, 4, 5, 6, 7, V.eoi]


def batch(*rows: list[int]) -> dict[str, torch.Tensor]:
    tokens = np.full((len(rows), 14), PAD, np.uint16)
    starts = np.zeros(tokens.shape, bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        starts[i, [0, len(row)]] = True
    return make_batch(tokens, starts, None, np.arange(len(rows)), V)


def test_losses_are_means_over_each_modalitys_tokens() -> None:
    model = Transformer(TransformerConfig(dim=16, layers=1, heads=2, ffn=16, dropout=0), V.size).initialise(0).eval()
    rows = [[0, *PICTURE, 30, 31, 2], [0, 40, 41, 42, 2]]
    sums = {"text": 0.0, "image": 0.0}
    for row in rows:
        log_p = model.logits(model(torch.tensor([row])))[0].log_softmax(-1)
        for at, token in enumerate(row[1:]):
            sums["image" if 4 <= token <= V.boi else "text"] -= log_p[at, token].item()
    whole = losses_by_modality(model, [batch(*rows)])
    assert whole["image"] == {"loss": pytest.approx(sums["image"] / 6, abs=1e-4), "tokens": 6}
    assert whole["text"] == {"loss": pytest.approx(sums["text"] / 7, abs=1e-4), "tokens": 7}
    apart = losses_by_modality(model, [batch(rows[0]), batch(rows[1])])
    assert apart["text"]["loss"] == pytest.approx(whole["text"]["loss"], abs=1e-5)
    assert list(losses_by_modality(model, [batch(rows[1])])) == ["text"]
    assert losses_by_modality(model, []) == {}
