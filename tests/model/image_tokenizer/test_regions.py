"""Crops and the terms made of them: known answers, and gradients that stay inside the boxes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model.image_tokenizer.regions import crops, face_distance, region_term


def boxes(*found: tuple[int, int, int, int]) -> torch.Tensor:
    """Of one picture."""
    return torch.tensor([found])


def some(side: int = 24, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_box_of_the_crops_size_is_cut_out_exactly() -> None:
    x = some()
    assert torch.allclose(crops(x, boxes((5, 3, 8, 8)), 8)[0], x[0, :, 3:11, 5:13], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_crops_are_torchs_antialiased_resize_of_the_cut_box(data: st.DataObject) -> None:
    x = some(32)
    left, top = data.draw(st.integers(0, 24)), data.draw(st.integers(0, 24))
    width, height = data.draw(st.integers(1, 32 - left)), data.draw(st.integers(1, 32 - top))
    side = data.draw(st.integers(2, 40))
    cut = x[:, :, top : top + height, left : left + width]
    expected = F.interpolate(cut, (side, side), mode="bilinear", antialias=True, align_corners=False)
    assert torch.allclose(crops(x, boxes((left, top, width, height)), side), expected, atol=1e-4)


def test_boxes_of_no_width_are_left_out_and_order_is_kept() -> None:
    x = some(count=3)
    none = (0, 0, 0, 0)
    found = crops(x, torch.tensor([[none, (1, 2, 4, 4)], [none, none], [(0, 0, 4, 4), (8, 8, 4, 4)]]), 4)
    expected = [x[0, :, 2:6, 1:5], x[2, :, :4, :4], x[2, :, 8:12, 8:12]]
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)
    assert crops(x, torch.zeros(3, 2, 4, dtype=torch.int64), 4).shape == (0, 3, 4, 4)


def stages(x: torch.Tensor) -> list[torch.Tensor]:
    """Two stages: the picture, and its means over blocks of four."""
    return [x, F.avg_pool2d(x, 2)]


def faces(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return face_distance(stages, (0.5, 2.0), a, b)


def test_the_face_terms_known_answer() -> None:
    """One of two pictures is brighter by 0.3 in its two faces: 2 faces · (0.5 + 2)·0.3 / 2 pictures."""
    x = some(count=2)
    found = torch.tensor([[(0, 0, 8, 8), (10, 10, 6, 6)], [(0, 0, 0, 0), (0, 0, 0, 0)]])
    y = x.clone()
    y[0] += 0.3
    y[1] -= 0.7  # has no faces
    assert region_term(faces, y, x, found, 8).item() == pytest.approx(2 * 2.5 * 0.3 / 2, rel=1e-5)
    assert region_term(faces, x, x, found, 8).item() == 0
    assert region_term(faces, y, x, None, 8).item() == 0


def test_outside_the_boxes_nothing_counts_and_nothing_is_pulled() -> None:
    x, found = some(), boxes((4, 5, 9, 7), (15, 1, 3, 20))
    inside = torch.zeros(24, 24, dtype=torch.bool)
    inside[5:12, 4:13] = inside[1:21, 15:18] = True
    y = torch.where(inside, x, -x).requires_grad_()
    assert region_term(faces, y, x, found, 8).item() == 0
    other = (x + 0.1 * some(seed=1)).requires_grad_()
    region_term(faces, other, x, found, 16).backward()
    assert other.grad is not None
    reached = other.grad[0].abs().sum(0) > 0
    assert not reached[~inside].any()
    assert reached[inside].all()


def test_under_autocast_crops_are_float32() -> None:
    x = some()
    with torch.autocast("cpu", torch.bfloat16):
        found = crops(x.bfloat16(), boxes((0, 0, 9, 9)), 8)
        assert found.dtype == torch.float32
        assert region_term(faces, x, x + 1, boxes((0, 0, 9, 9)), 8).dtype == torch.float32
