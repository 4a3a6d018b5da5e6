"""What the terms of the loss look at, what they add up to, and whom their gradients reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from infra.errors import RecipeError
from model.image_tokenizer import quantize
from model.image_tokenizer.batches import Batch
from model.image_tokenizer.config import ImageTokenizerTraining
from model.image_tokenizer.fits import needs_perceptual
from model.image_tokenizer.regions import crops, face_distance
from model.image_tokenizer.terms import Terms
from model.image_tokenizer.trainer import Trainer
from tests.model.image_tokenizer.toys import CONFIG, regions, settings, squares


def terms(vgg_file: Path, **changes: object) -> Terms:
    training = ImageTokenizerTraining.model_validate({"perceptual_weights": str(vgg_file), **changes})
    return Terms(training, torch.device("cpu"), faces=False, objects=False, average=lambda x: x)


def test_lpips_may_see_some_pictures_only(vgg_file: Path) -> None:
    torch.manual_seed(0)
    x_BCHW, y_BCHW = torch.rand(4, 3, 32, 32) * 2 - 1, (torch.rand(4, 3, 32, 32) * 2 - 1).requires_grad_()
    seen = terms(vgg_file, perceptual_every=3)
    assert seen.perceptual is not None
    loss = seen.fidelity(y_BCHW, Batch(x_BCHW))["perceptual"]
    assert torch.allclose(loss, seen.perceptual(y_BCHW[[0, 3]], x_BCHW[[0, 3]]))
    gradient = torch.autograd.grad(loss, y_BCHW)[0]
    assert (gradient.abs().sum((1, 2, 3)) > 0).tolist() == [True, False, False, True]


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("world", [2, 3])
def test_which_pictures_lpips_sees_does_not_depend_on_the_workers(vgg_file: Path, every: int, world: int) -> None:
    """Each worker's part, averaged, is one worker's: the figure, and the gradient that DeepSpeed averages."""
    torch.manual_seed(0)
    x_BCHW, y_BCHW = torch.rand(6, 3, 16, 16) * 2 - 1, (torch.rand(6, 3, 16, 16) * 2 - 1).requires_grad_()
    training = ImageTokenizerTraining(perceptual_weights=str(vgg_file), perceptual_every=every)

    def part(rank: int, world: int) -> torch.Tensor:
        found = Terms(
            training, torch.device("cpu"), faces=False, objects=False, average=lambda x: x, rank=rank, world=world
        )
        mine = slice(rank * 6 // world, (rank + 1) * 6 // world)
        return found.fidelity(y_BCHW[mine], Batch(x_BCHW[mine]))["perceptual"]

    one, many = part(0, 1), torch.stack([part(rank, world) for rank in range(world)]).mean()
    assert torch.allclose(one, many, rtol=1e-5)
    gradients = [torch.autograd.grad(loss, y_BCHW)[0] for loss in (one, many)]
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-3 * float(gradients[0].abs().max())


# -- faces and objects


class FaceStages(nn.Module):
    """A stand-in for a face network: two stages with known answers."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.factor * x, x.mean((1, 2, 3))]


class OneTensor(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OtherSide(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x.reshape(1, 5, 7)]


def region_terms(**changes: object) -> Terms:
    training = ImageTokenizerTraining.model_validate({"crop_side": 16, "perceptual_weight": 0, **changes})
    return Terms(training, torch.device("cpu"), faces=True, objects=True, average=lambda x: x)


def test_faces_are_compared_in_the_network_that_the_recipe_names(tmp_path: Path) -> None:
    torch.jit.script(FaceStages()).save(str(tmp_path / "faces.pt"))
    found = region_terms(face_weight=1.0, face_network=str(tmp_path / "faces.pt"), face_stage_weights=(0.1, 2.0))
    assert found.perceptual is None  # nothing asks for LPIPS
    x_BCHW = torch.rand(2, 3, 24, 24)
    batch = Batch(x_BCHW, faces_BS4=torch.tensor([[[2, 3, 16, 16]], [[0, 0, 0, 0]]]))
    losses = found.fidelity(x_BCHW + 0.25, batch)
    assert losses["face"].item() == pytest.approx((0.1 * 3 * 0.25 + 2 * 0.25) / 2, rel=1e-5)
    assert "object" not in losses
    assert found.fidelity(x_BCHW, batch)["face"].item() == 0


def test_without_a_network_faces_are_seen_through_vgg_and_objects_through_lpips(vgg_file: Path) -> None:
    found = region_terms(face_weight=0.5, object_weight=2.0, perceptual_weights=str(vgg_file))
    assert found.perceptual is not None
    x_BCHW, y_BCHW = torch.rand(2, 3, 24, 24) * 2 - 1, torch.rand(2, 3, 24, 24) * 2 - 1
    boxes = torch.tensor([[[2, 3, 16, 16], [5, 5, 9, 12]], [[0, 0, 0, 0], [4, 4, 10, 10]]])
    losses = found.fidelity(y_BCHW, Batch(x_BCHW, faces_BS4=boxes[:, :1], objects_BS4=boxes))
    assert losses.keys() == {"l1", "face", "object"}  # whole pictures do not count, by their weight of 0
    a, b = crops(y_BCHW, boxes, 16), crops(x_BCHW, boxes, 16)
    assert losses["object"].item() == pytest.approx(found.perceptual.distances(a, b).sum().item() / 2, rel=1e-4)
    weights = found.training.face_stage_weights
    assert losses["face"].item() == pytest.approx(
        face_distance(found.perceptual.stages, weights, a[:1], b[:1]).item() / 2, rel=1e-4
    )


def test_face_networks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    for name, network in (("one", OneTensor()), ("other", OtherSide()), ("two", FaceStages())):
        torch.jit.script(network).save(str(tmp_path / name))
    (tmp_path / "bad").write_bytes(b"nonsense")
    for name, said in (
        ("none", "none: cannot be read as TorchScript.*face_network"),
        ("bad", "bad: cannot be read as TorchScript.*face_network"),
        ("one", "one: returns no list of stages"),
        ("other", r"other: fails on crops of \(1, 3, 16, 16\)"),
        ("two", "two: has 2 stages, and .*face_stage_weights gives 5"),
    ):
        with pytest.raises(RecipeError, match=said):
            region_terms(face_weight=1.0, face_network=str(tmp_path / name))


@pytest.mark.parametrize(
    ("changes", "faces", "objects", "needed"),
    [
        ({"perceptual_weight": 0}, True, True, None),
        ({}, False, False, "perceptual_weight is 1"),
        ({"perceptual_weight": 0, "object_weight": 0.3}, True, True, "object_weight is 0.3"),
        ({"perceptual_weight": 0, "object_weight": 0.3}, True, False, None),  # no objects are known
        ({"perceptual_weight": 0, "face_weight": 0.2}, True, True, "face_weight is 0.2"),
        ({"perceptual_weight": 0, "face_weight": 0.2, "face_network": "x"}, True, True, None),
    ],
)
def test_weights_are_asked_for_only_where_they_are_used(
    changes: dict[str, object], faces: bool, objects: bool, needed: str | None
) -> None:
    training = ImageTokenizerTraining.model_validate(changes)
    if needed is None:
        assert not needs_perceptual(training, faces=faces, objects=objects)
    else:
        with pytest.raises(RecipeError, match=f"{needed} and no perceptual_weights"):
            needs_perceptual(training, faces=faces, objects=objects)


# -- whole steps


def every_term(vgg_file: Path, **changes: object) -> Trainer:
    pictures, boxes = squares()
    base = {"discriminator_start": 1, "codebook_start": 0.0, "perceptual_weights": str(vgg_file), "flip": False}
    weights = {"perceptual_weight": 0.2, "face_weight": 0.5, "object_weight": 0.1, "steps": 1000, "revive_after": 0}
    weights["colour_weight"] = 0.3
    precision = str(changes.pop("precision", "fp32"))
    plan = settings(**{**base, **weights, "schedule": "constant", **changes})
    torch.set_num_threads(1)
    return Trainer(CONFIG, plan, pictures, regions=regions(boxes), precision=precision)


def test_the_loss_is_the_weighted_sum_of_its_terms(vgg_file: Path) -> None:
    trainer = every_term(vgg_file, discriminator_weight=0.8, codebook_weight=0.7, commitment_beta=0.25)
    for _ in range(3):
        now = {name: float(loss) for name, loss in trainer.train_step().items()}
        fidelity = now["l1"] + 0.3 * now["colour"] + 0.2 * now["perceptual"] + 0.5 * now["face"] + 0.1 * now["object"]
        quantisation = now["commitment"] + 0.25 * now["codebook"]
        expected = fidelity + 0.7 * quantisation + 0.8 * now["adaptive"] * now["generator"]
        assert now["loss"] == pytest.approx(expected, rel=1e-5)
    assert min(now["perceptual"], now["object"]) > 0


def test_gradients_reach_what_they_should_and_nothing_else(vgg_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at where each optimizer moves: what the generator's has, and what the discriminator's has."""
    trainer = every_term(vgg_file)
    seen: dict[str, dict[str, float]] = {}

    def gradients() -> dict[str, float]:
        networks = {"model": trainer.model, "discriminator": trainer.discriminator, "lpips": trainer.terms.perceptual}
        return {
            f"{which}.{name}": float(p.grad.abs().sum())
            for which, network in networks.items()
            if network is not None
            for name, p in network.named_parameters()
            if p.grad is not None
        }

    for which, optimizer in (("generator", trainer.optimizer), ("judge", trainer.discriminator_optimizer)):
        real = optimizer.step
        monkeypatch.setattr(
            optimizer, "step", lambda real=real, which=which: (seen.update({which: gradients()}), real())
        )
    trainer.train_step()
    model = {f"model.{name}" for name, _ in trainer.model.named_parameters()}
    judge = {f"discriminator.{name}" for name, _ in trainer.discriminator.named_parameters()}
    assert seen["generator"].keys() == model
    assert all(g > 0 for name, g in seen["generator"].items() if not name.endswith("attn_1.k.bias"))
    assert seen["judge"].keys() == judge
    still = {name for name, g in seen["judge"].items() if g == 0}
    assert still <= {"discriminator.main.8.bias"}  # while all scores are inside the hinges, both sides cancel out
    assert trainer.terms.perceptual is not None
    assert not any(p.requires_grad for p in trainer.terms.perceptual.parameters())


def test_every_term_falls(vgg_file: Path) -> None:
    """A short training with all terms at once; the discriminator learns far slower, so that its side can be fooled."""
    trainer = every_term(vgg_file, learning_rate=2e-3, discriminator_learning_rate=1e-5, discriminator_weight=0.3)
    history = [{k: float(v) for k, v in trainer.train_step().items()} for _ in range(60)]
    for name in ("l1", "colour", "perceptual", "face", "object", "generator"):
        early, late = (sum(step[name] for step in part) / 8 for part in (history[:8], history[-8:]))
        assert late < early - 0.1 * abs(early), name


def test_the_discriminator_learns_to_tell(vgg_file: Path) -> None:
    trainer = every_term(vgg_file, learning_rate=1e-6, discriminator_learning_rate=3e-3)
    history = [float(trainer.train_step()["discriminator"]) for _ in range(30)]
    assert sum(history[-5:]) / 5 < 0.5 * sum(history[:2]) / 2
    x_BCHW = trainer.batch(0).x_BCHW
    with torch.no_grad():
        fake_BCHW = trainer.model(x_BCHW).reconstruction_BCHW
        assert trainer.discriminator(x_BCHW).mean() > trainer.discriminator(fake_BCHW).mean() + 0.5


def test_under_bf16_what_must_not_be_rounded_is_float32(vgg_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = every_term(vgg_file, precision="bf16")
    seen: dict[str, set[torch.dtype]] = {}

    def note(name: str, *tensors: torch.Tensor) -> None:
        seen.setdefault(name, set()).update(t.dtype for t in tensors)

    def nearest(x_ND: torch.Tensor, *rest: object, real: object = quantize.nearest, **more: object) -> torch.Tensor:
        note("search", x_ND, x_ND @ x_ND.T)  # under autocast the product would be bf16
        return real(x_ND, *rest, **more)  # type: ignore[operator, no-any-return]

    monkeypatch.setattr(quantize, "nearest", nearest)
    assert trainer.terms.perceptual is not None
    for name, module in (
        ("convolution", trainer.model.encoder.conv_in),
        ("judge", trainer.discriminator.main[0]),
        ("vgg", trainer.terms.perceptual.convolutions[0][0]),
    ):
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
    losses = trainer.train_step()
    assert all(seen[name] == {torch.bfloat16} for name in ("convolution", "judge", "vgg"))
    assert seen["search"] == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(torch.isfinite(loss) for loss in losses.values())
    kept = [*trainer.model.parameters(), *trainer.discriminator.parameters(), *trainer.averaged.values()]
    moments = [
        moment
        for optimizer in (trainer.optimizer, trainer.discriminator_optimizer)
        for state in optimizer.state.values()
        for moment in (state["exp_avg"], state["exp_avg_sq"])
    ]
    assert moments
    assert {t.dtype for t in [*kept, *moments]} == {torch.float32}


def test_the_average_is_ema_in_closed_form(vgg_file: Path) -> None:
    """After n steps: Σ over k of (1 - d_k)·Π of later d · w_k, and Π of all d · w_0; early decays are smaller."""
    trainer = every_term(vgg_file, perceptual_weight=0.0, face_weight=0.0, object_weight=0.0, ema=0.7)
    name, weight = next(iter(trainer.model.named_parameters()))
    history = [weight.detach().clone()]
    for _ in range(9):
        trainer.train_step()
        history.append(weight.detach().clone())
    decays = [min(0.7, (1 + k) / (10 + k)) for k in range(9)]
    expected, left = torch.zeros_like(weight), 1.0
    for decay, then in zip(reversed(decays), reversed(history[1:]), strict=True):
        expected += left * (1 - decay) * then
        left *= decay
    assert torch.allclose(trainer.averaged[name], expected + left * history[0], atol=1e-6)
    assert not torch.allclose(trainer.averaged[name], weight, atol=1e-6)


def test_dead_codes_come_back_as_latents_without_momentum(vgg_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = every_term(vgg_file, revive_after=2, perceptual_weight=0.0, face_weight=0.0, object_weight=0.0)
    codebook = trainer.model.quantize.embedding.weight
    codebook.data[10:] = 1000.0  # nothing is ever as far away
    latents: list[torch.Tensor] = []
    real = trainer._revive
    monkeypatch.setattr(trainer, "_revive", lambda x_BDHW: (latents.append(x_BDHW), real(x_BDHW)))
    trainer.train_step()
    assert (codebook[10:] > 900).all()  # not yet
    trainer.train_step()
    rows_ND = latents[-1].permute(0, 2, 3, 1).reshape(-1, codebook.shape[1])
    for code in range(10, 16):
        assert (rows_ND == codebook[code]).all(1).any()
        assert torch.equal(trainer.averaged["quantize.embedding.weight"][code], codebook[code])
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not trainer.optimizer.state[codebook][moment][code].any()
    assert len(codebook[10:].unique(dim=0)) == 6


def test_codes_have_as_long_after_the_codebooks_start_as_any(vgg_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = every_term(
        vgg_file,
        **{"steps": 40, "codebook_start": 0.125, "revive_after": 3, "discriminator_start": 10**6},
        **{"perceptual_weight": 0.0, "face_weight": 0.0, "object_weight": 0.0},
    )
    revived: list[int] = []

    def far(x_ND: torch.Tensor, *rest: object) -> torch.Tensor:
        revived.append(trainer.step)
        return x_ND[:0]

    def start(real: Callable[[], None] = trainer._start_codebook) -> None:
        real()
        trainer.model.quantize.embedding.weight.data[10:] = 1000.0  # there is always something dead

    monkeypatch.setattr("model.image_tokenizer.trainer.sample_far", far)
    monkeypatch.setattr(trainer, "_start_codebook", start)
    for _ in range(12):
        trainer.train_step()
    assert trainer.codebook_start == 5
    assert revived == [8, 11]
