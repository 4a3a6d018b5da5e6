from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from model.data.loader import make_batch
from model.training.config import PretrainConfig
from model.training.module import TrainingModule
from model.transformer.backends import Segments
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer
from model.vocabulary import BOS, EOS, PAD, Vocabulary

V = Vocabulary(image_codes=16, text_start=32, size=300)
CONFIG = TransformerConfig(dim=32, layers=2, heads=2, ffn=64, dropout=0.0)


def loss(attention: Literal["document", "sequence"], first: list[int], padding: int = 0) -> torch.Tensor:
    """The loss of a row of two documents, of which the first one is given."""
    ids = [BOS, *first, EOS, BOS, 50, 51, 52, EOS, *[PAD] * padding]
    starts = np.zeros((1, len(ids)), np.bool_)
    starts[0, [0, len(first) + 2]] = True
    if padding:
        starts[0, -padding] = True
    tokens = np.array([ids], np.uint16)
    batch = make_batch(tokens, starts, None, [0], V)
    batch["labels"][:, : len(first) + 2] = -100  # the second document's loss alone
    model = TrainingModule(Transformer(CONFIG, V.size).initialise(0), 0.0, 1.0, attention)
    with torch.no_grad():
        return model(batch)[0]


def test_inside_documents_the_document_before_makes_no_difference() -> None:
    assert PretrainConfig().attention == "document"
    assert float(loss("document", [40, 41, 42])) == pytest.approx(float(loss("document", [60, 61, 62])), abs=1e-6)


def test_across_documents_it_does_and_padding_does_not() -> None:
    whole = float(loss("sequence", [40, 41, 42]))
    assert abs(whole - float(loss("sequence", [60, 61, 62]))) > 1e-3
    assert whole == pytest.approx(float(loss("sequence", [40, 41, 42], padding=5)), abs=1e-5)


def test_across_documents_a_sequence_is_one_row() -> None:
    """As if nobody had said where documents begin."""
    ids = torch.tensor([[BOS, 40, 41, EOS, BOS, 50, 51, EOS]])
    transformer = Transformer(CONFIG, V.size).initialise(0)
    seen: list[torch.Tensor] = []
    transformer.norm.register_forward_hook(lambda module, inputs, out: seen.append(out))
    module = TrainingModule(transformer, 0.0, 1.0, "sequence")
    starts = np.zeros((1, 8), np.bool_)
    starts[0, [0, 4]] = True
    with torch.no_grad():
        module(make_batch(ids.numpy().astype(np.uint16), starts, None, [0], V))
        transformer(ids)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=1e-5)


def test_attention_is_given_the_borders_that_the_loader_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding them again would make each micro-batch wait for a GPU."""
    monkeypatch.setattr(Segments, "of", lambda documents_BT: pytest.fail("borders were looked for"))
    loss("document", [40, 41, 42], padding=5)
