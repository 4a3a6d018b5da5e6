"""Fast encoding: what is lowered and what is not, float32 that is float32, compilation, kept memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from infra.errors import ResourceError
from infra.storage import Storage
from model.image_tokenizer.fast import Precision, compiled, exact_float32, keep_freed_memory
from model.image_tokenizer.load import ImageTokenizer, load_image_tokenizer, save_image_tokenizer
from model.image_tokenizer.norm import normalised
from model.image_tokenizer.vqgan import VQModel
from tests.model.image_tokenizer.foreign import SMALL, pictures, random_model


def settings() -> list[str]:
    backends = torch.backends
    ops = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)  # type: ignore[attr-defined]
    return [op.fp32_precision for op in ops]


@pytest.fixture
def own_settings() -> Iterator[None]:
    wide = torch.backends.fp32_precision  # type: ignore[attr-defined]
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
    torch.backends.fp32_precision = wide  # type: ignore[attr-defined]


@pytest.mark.usefixtures("own_settings")
@pytest.mark.parametrize("way", ["default", "high", "medium", "legacy", "generic"])
def test_float32_is_exact_within_and_as_it_was_after(way: str) -> None:
    if way in ("high", "medium"):
        torch.set_float32_matmul_precision(way)
    elif way == "legacy":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif way == "generic":
        torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    before, precision = settings(), torch.get_float32_matmul_precision()
    with exact_float32():
        assert settings() == ["ieee"] * 4
    assert settings() == before
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert settings() == before
    assert torch.get_float32_matmul_precision() == precision


def test_encoding_and_decoding_are_within(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, seen = ImageTokenizer(random_model()), []
    monkeypatch.setattr(VQModel, "latents", spied(VQModel.latents, seen))
    monkeypatch.setattr(VQModel, "decode_latents", spied(VQModel.decode_latents, seen))
    tokenizer.decode(tokenizer.encode(pictures(1, 32)))
    assert seen == [["ieee"] * 4] * 2


def spied(function: object, seen: list[list[str]]) -> object:
    def spy(*args: object) -> object:
        seen.append(settings())
        return function(*args)  # type: ignore[operator]

    return spy


def test_what_bf16_lowers_and_what_stays() -> None:
    tokenizer = ImageTokenizer(random_model(), "bf16")
    encoder, dtypes = tokenizer.model.encoder, {}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            assert module.weight.dtype == module.bias.dtype
            dtypes[name] = module.weight.dtype
            module.register_forward_hook(lambda m, args, out, name=name: dtypes.update({f"{name} out": out.dtype}))
    lowered = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    convolutions = {name for name, m in encoder.named_modules() if isinstance(m, nn.Conv2d)}
    assert lowered == convolutions - {"conv_out"}
    searched: list[torch.dtype] = []
    latents = tokenizer.model.quant_conv.register_forward_hook(lambda m, args, out: searched.append(out.dtype))
    codes_BN = tokenizer.encode(pictures(2, 32))
    latents.remove()
    assert searched == [torch.float32]
    assert dtypes["conv_out out"] == torch.float32
    assert dtypes["down.0.block.0.conv1 out"] == dtypes["mid.attn_1.q out"] == torch.bfloat16
    for module in (tokenizer.model.quant_conv, tokenizer.model.decoder, tokenizer.model.quantize):
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    exact_BN = ImageTokenizer(random_model()).encode(pictures(2, 32))
    assert float((codes_BN == exact_BN).float().mean()) > 0.5
    assert tokenizer.decode(codes_BN).dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activate", [True, False])
def test_the_norm_is_the_same_in_all_its_forms(
    dtype: torch.dtype, activate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, 32, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    # Channels of one group that differ in mean and spread: their moments must be put together rightly.
    x_BCHW = (torch.randn(2, 32, 12, 12) * torch.rand(32, 1, 1) * 3 + 5 * torch.randn(32, 1, 1)).to(dtype)
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    expected = norm(x_BCHW.float())
    expected = torch.nn.functional.silu(expected) if activate else expected
    before = x_BCHW.clone()
    with torch.no_grad():
        plain = normalised(norm, x_BCHW, activate)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        written_out = normalised(norm, x_BCHW, activate)
    assert torch.equal(x_BCHW, before)
    bound = 1e-5 if dtype == torch.float32 else 0.05
    for found in (plain, written_out):
        assert found.dtype == dtype
        assert torch.allclose(found.float(), expected, atol=bound, rtol=bound)


@pytest.mark.timeout(900)  # a C++ compiler's half a minute, and machines may be busy
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_codes_are_the_same(precision: Precision) -> None:
    config = SMALL.model_copy(update={"multipliers": (1, 2), "residual_blocks": 1})
    images_BCHW = pictures(4, 32)
    tokenizer = ImageTokenizer(random_model(config), precision, compile=True)
    codes_BN = tokenizer.encode(images_BCHW)
    equal = codes_BN == ImageTokenizer(random_model(config), precision).encode(images_BCHW)
    # In bf16 what is rounded between two operations differs, once they are one.
    assert bool(equal.all()) if precision == "fp32" else float(equal.float().mean()) > 0.8
    assert torch.equal(tokenizer.encode(images_BCHW), codes_BN)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(ResourceError, match=r"no 'no-such-compiler -O2'\. Install g\+\+.*encode\.compile: false"):
        compiled(lambda: None, torch.device("cpu"))
    monkeypatch.setenv("CC", "")
    with pytest.raises(ResourceError, match="gcc"):
        compiled(lambda: None, torch.device("cuda"))
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="needs the package triton"):
        compiled(lambda: None, torch.device("cuda"))


def test_the_decoder_stays_away_from_who_only_encodes(tmp_path: object) -> None:
    model, store = random_model(), Storage(str(tmp_path))
    save_image_tokenizer(store, SMALL, model.state_dict())
    whole, half = load_image_tokenizer(store), load_image_tokenizer(store, decoder=False, precision="bf16")
    assert whole.has_decoder
    assert not half.has_decoder
    assert half.precision == "bf16"
    names = {name for name, _ in half.model.named_parameters()}
    assert not any(name.startswith("decoder.") for name in names)
    images_BCHW = pictures(2, 32)
    assert torch.equal(load_image_tokenizer(store, decoder=False).encode(images_BCHW), whole.encode(images_BCHW))


def test_freed_memory_is_kept_and_nothing_else_changes() -> None:
    """In a process of its own: the setting stays."""
    code = (
        "import torch, resource; from model.image_tokenizer.fast import keep_freed_memory\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def work():\n    before = faults(); [torch.zeros(1 << 24).sum() for _ in range(4)]; return faults() - before\n"
        "work(); plain = work(); kept = keep_freed_memory(); work(); print(kept, plain, work())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, plain, less = done.stdout.split()
    if kept == "True":
        assert int(less) < int(plain) / 2  # with huge pages there are few to begin with
    else:
        assert keep_freed_memory() is False
