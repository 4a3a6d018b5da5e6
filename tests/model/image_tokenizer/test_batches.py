"""What a step sees: pictures in order, faces twice, boxes where their pictures are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.image_tokenizer.batches import Batches, Regions
from model.image_tokenizer.config import ImageTokenizerTraining
from model.image_tokenizer.schedule import PictureOrder, learning_rate_factor


def training(**changes: object) -> ImageTokenizerTraining:
    return ImageTokenizerTraining.model_validate({"batch": 4, "perceptual_weight": 0, **changes})


def test_every_epoch_shows_every_picture_once() -> None:
    order = PictureOrder(10, 4, seed=1)
    seen = np.concatenate([order.batch(step) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    fresh = PictureOrder(10, 4, seed=1)
    assert list(fresh.batch(3)) == list(order.batch(3))  # no state
    assert sorted(PictureOrder(3, 8, 0).batch(0)[:6]) == [0, 0, 1, 1, 2, 2]
    assert 0.3 < np.mean([order.flips(s).mean() for s in range(200)]) < 0.7


@pytest.mark.parametrize("times", [1, 2, 5])
def test_pictures_with_faces_are_shown_that_often_every_epoch(times: int) -> None:
    faces = np.zeros((12, 2, 4), np.int16)
    faces[[1, 5, 11], 0] = (2, 2, 8, 8)
    pictures = np.zeros((12, 16, 16, 3), np.uint8)
    batches = Batches(training(face_sampling=times), pictures, Regions(faces=faces), seed=3)
    epoch = batches.order.epoch_pictures
    assert epoch == 9 + 3 * times
    seen = np.concatenate([batches.order.batch(step) for step in range(epoch)])  # four epochs, in batches of four
    for start in range(0, 4 * epoch, epoch):
        counts = np.bincount(seen[start : start + epoch], minlength=12)
        assert [i for i in range(12) if counts[i] == times] == ([1, 5, 11] if times > 1 else list(range(12)))
        assert counts.sum() == epoch


def test_without_faces_sampling_changes_nothing() -> None:
    pictures = np.zeros((12, 16, 16, 3), np.uint8)
    order = Batches(training(), pictures, Regions(), seed=3).order
    assert list(order.batch(2)) == list(PictureOrder(12, 4, 3).batch(2))


def test_random_crops_are_parts_of_their_pictures_and_reach_every_place() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    cropped, whole = (Batches(training(random_crop=crop), pictures, Regions(), seed=3) for crop in (16, None))
    corners = set()
    for step in range(200):
        crops, squares = (b.at(step, slice(0, 4)).x_BCHW for b in (cropped, whole))
        assert crops.shape == (4, 3, 16, 16)
        for crop, square in zip(crops, squares, strict=True):
            found = [(r, c) for r in range(9) for c in range(9) if torch.equal(square[:, r : r + 16, c : c + 16], crop)]
            corners.update(found)
            assert len(found) == 1
    assert corners == {(r, c) for r in range(9) for c in range(9)}
    halves = [cropped.at(7, share).x_BCHW for share in (slice(0, 2), slice(2, 4))]
    assert torch.equal(torch.cat(halves), cropped.at(7, slice(0, 4)).x_BCHW)


@pytest.mark.parametrize("crop", [None, 16])
def test_boxes_are_cut_and_mirrored_with_their_pictures(crop: int | None) -> None:
    side, rng = 22, np.random.default_rng(0)
    pictures, faces = np.zeros((6, side, side, 3), np.uint8), np.zeros((6, 2, 4), np.int16)
    for i in range(6):
        x, y = rng.integers(0, 15, 2)
        faces[i, 0] = (x, y, 5, 7)
        pictures[i, y : y + 7, x : x + 5] = 255
    batches = Batches(training(flip=True, batch=6, random_crop=crop), pictures, Regions(faces=faces), seed=1)
    mirrored = kept = 0
    for step in range(4):
        batch = batches.at(step, slice(0, 6))
        assert batch.faces_BS4 is not None
        for x_CHW, (box, none) in zip(batch.x_BCHW, batch.faces_BS4.tolist(), strict=True):
            x, y, width, height = box
            white = x_CHW[0] > 0
            if width:
                assert white.sum() == white[y : y + height, x : x + width].sum() == 35
            else:
                assert white.sum() < 35  # what is cut is no face any more
            assert none[2] == 0
            kept += width > 0
        mirrored += int((batches.order.flips(step)).sum())
    assert 0 < mirrored < 24
    assert kept == 24 if crop is None else 0 < kept < 24


def test_only_so_many_boxes_count() -> None:
    boxes = np.tile(np.array([1, 1, 4, 4], np.int16), (6, 5, 1))
    pictures = np.zeros((6, 16, 16, 3), np.uint8)
    batches = Batches(training(region_boxes=2), pictures, Regions(objects=boxes), seed=1)
    found = batches.at(0, slice(0, 4))
    assert found.objects_BS4 is not None
    assert found.objects_BS4.shape == (4, 2, 4)
    assert found.faces_BS4 is None
    assert batches.order.epoch_pictures == 6  # objects are not sampled more often


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 13, 4, 4), (14, 0, 3, 4), (3, 3, 2, 0)])
def test_boxes_outside_their_pictures_are_named(box: tuple[int, int, int, int]) -> None:
    boxes = np.zeros((3, 1, 4), np.int16)
    boxes[2, 0] = box
    with pytest.raises(ValueError, match="faces: box .* of picture 2 .* 16 pixels"):
        Batches(training(), np.zeros((3, 16, 16, 3), np.uint8), Regions(faces=boxes), seed=0)
    with pytest.raises(ValueError, match="objects are boxes of shape"):
        Batches(training(), np.zeros((4, 16, 16, 3), np.uint8), Regions(objects=boxes), seed=0)


def test_learning_rate() -> None:
    plan = training(steps=100, warmup_steps=10, schedule="cosine")
    rates = [learning_rate_factor(plan, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert learning_rate_factor(training(schedule="constant", warmup_steps=2), 11) == 1
