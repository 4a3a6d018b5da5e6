"""What the terms of the loss look at."""

from __future__ import annotations

from pathlib import Path

import torch

from model.image_tokenizer.batches import Batch
from model.image_tokenizer.config import ImageTokenizerTraining
from model.image_tokenizer.terms import Terms


def terms(vgg_file: Path, **changes: object) -> Terms:
    training = ImageTokenizerTraining.model_validate({"perceptual_weights": str(vgg_file), **changes})
    return Terms(training, torch.device("cpu"), faces=False, objects=False, average=lambda x: x)


def test_lpips_may_see_a_part_of_some_pictures(vgg_file: Path) -> None:
    torch.manual_seed(0)
    x_BCHW, y_BCHW = torch.rand(4, 3, 32, 32) * 2 - 1, (torch.rand(4, 3, 32, 32) * 2 - 1).requires_grad_()
    batch = Batch(x_BCHW, corner=(5, 9))
    seen = terms(vgg_file, perceptual_side=16, perceptual_every=2)
    assert seen.perceptual is not None
    loss = seen.fidelity(y_BCHW, batch)["perceptual"]
    parts = [p[:, :, 5:21, 9:25][[0, 2]] for p in (y_BCHW, x_BCHW)]
    assert torch.equal(loss, seen.perceptual(*parts))
    gradient = torch.autograd.grad(loss, y_BCHW)[0]
    felt = gradient.abs().sum(1) > 0
    inside = torch.zeros_like(felt)
    inside[::2, 5:21, 9:25] = True
    assert bool(felt[inside].float().mean() > 0.9)
    assert not felt[~inside].any()

    whole = terms(vgg_file)
    assert whole.perceptual is not None
    assert torch.equal(whole.fidelity(y_BCHW, Batch(x_BCHW))["perceptual"], whole.perceptual(y_BCHW, x_BCHW))
