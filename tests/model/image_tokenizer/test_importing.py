"""Foreign weights: read from every layout, the same codes as ``transformers``', refused by name otherwise."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from infra.errors import StoreError
from infra.storage import Storage
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.foreign_files import find_files
from model.image_tokenizer.importing import Imported, import_weights
from model.image_tokenizer.load import load_image_tokenizer, save_image_tokenizer
from model.image_tokenizer.vqgan import normalise
from tests.model.image_tokenizer.foreign import (
    SMALL,
    pictures,
    random_model,
    taming_yaml,
    vqvae,
    whole_chameleon,
    write_taming,
)

WIDE = ImageTokenizerConfig(
    resolution=48, codes=200, channels=64, multipliers=(1, 1, 3), residual_blocks=1, z_channels=20, embed_dim=24
)
FLAT = ImageTokenizerConfig(
    resolution=16, codes=30, channels=32, multipliers=(2,), residual_blocks=3, z_channels=8, embed_dim=8
)


def read(path: Path, config: Path | None = None, resolution: int = 512) -> Imported:
    with find_files(str(path), None if config is None else str(config)).on_disk() as files:
        return import_weights(files, resolution)


@pytest.mark.parametrize("config", [SMALL, WIDE, FLAT], ids=["small", "wide", "flat"])
def test_a_vqgan_checkpoint(config: ImageTokenizerConfig, tmp_path: Path) -> None:
    model = random_model(config)
    found = read(write_taming(tmp_path, model))
    assert found.config == config
    assert found.has_decoder
    assert (found.layout, found.dtype, found.left_out) == ("checkpoint", "float32", 1)
    assert found.weights.keys() == model.state_dict().keys()
    assert all(torch.equal(w, found.weights[name]) for name, w in model.state_dict().items())
    save_image_tokenizer(Storage(tmp_path / "ours"), found.config, found.weights)
    tokenizer = load_image_tokenizer(Storage(tmp_path / "ours"))
    images_BCHW = pictures(8, config.resolution, seed=9)
    codes_BN = tokenizer.encode(images_BCHW)
    with torch.no_grad():
        theirs = vqvae(model).encode(normalise(images_BCHW)).image_tokens
    assert torch.equal(codes_BN.flatten(), theirs.flatten())
    assert codes_BN.unique().numel() > 15
    assert tokenizer.decode(codes_BN).shape == images_BCHW.shape


def test_the_resolution_is_the_one_thing_that_shapes_do_not_tell(tmp_path: Path) -> None:
    path = write_taming(tmp_path, random_model())
    (tmp_path / "vqgan.yaml").rename(tmp_path / "elsewhere.yaml")
    assert read(path, resolution=64).config == SMALL.model_copy(update={"resolution": 64})
    assert read(path, tmp_path / "elsewhere.yaml", resolution=64).config == SMALL


@pytest.mark.parametrize("how", ["alone", "whole", "shards", "file", "bf16"])
def test_folders_of_transformers(how: str, tmp_path: Path) -> None:
    model = random_model()
    folder = tmp_path / "theirs"
    if how in ("alone", "file"):
        vqvae(model).save_pretrained(folder)
    elif how == "bf16":
        whole_chameleon(model).to(torch.bfloat16).save_pretrained(folder)
    else:
        whole_chameleon(model).save_pretrained(folder, max_shard_size="500KB" if how == "shards" else "50GB")
        assert (folder / "model.safetensors.index.json").exists() == (how == "shards")
    found = read(folder / "model.safetensors" if how == "file" else folder)
    assert found.config == SMALL
    assert not found.has_decoder
    assert (found.left_out > 0) == (how in ("whole", "shards", "bf16"))
    expected = {k: w for k, w in model.state_dict().items() if not k.startswith("decoder.")}
    if how == "bf16":
        assert found.dtype == "bfloat16"
        expected = {k: w.bfloat16().float() for k, w in expected.items()}
    assert found.weights.keys() == expected.keys()
    assert all(torch.equal(w, found.weights[name]) for name, w in expected.items())


def test_an_encoder_alone_encodes_and_says_why_it_does_not_decode(tmp_path: Path) -> None:
    model = random_model()
    vqvae(model).save_pretrained(tmp_path / "theirs")
    found = read(tmp_path / "theirs")
    save_image_tokenizer(Storage(tmp_path / "ours"), found.config, found.weights)
    tokenizer = load_image_tokenizer(Storage(tmp_path / "ours"))
    images_BCHW = pictures(3, 32)
    with torch.no_grad():
        assert torch.equal(tokenizer.encode(images_BCHW), model.encode(normalise(images_BCHW)))
    with pytest.raises(StoreError, match="an encoder only.*import the vqgan.ckpt"):
        tokenizer.decode(tokenizer.encode(images_BCHW))
    again = read(tmp_path / "ours")  # as with a whole one, the folder that we keep can be imported, too
    assert (again.config, again.layout, again.has_decoder) == (SMALL, "calumma", False)


def test_chameleons_own_size(tmp_path: Path) -> None:
    """All 1,024 codes of a 512x512 picture equal transformers', by the real layout of both."""
    config = ImageTokenizerConfig()
    model = random_model(config)
    peer = vqvae(model)
    torch.save({"state_dict": dict(model.state_dict())}, tmp_path / "vqgan.ckpt")
    found = read(tmp_path / "vqgan.ckpt")
    assert found.config == config
    save_image_tokenizer(Storage(tmp_path / "ours"), found.config, found.weights)
    images_BCHW = pictures(1, 512, seed=5)
    codes_BN = load_image_tokenizer(Storage(tmp_path / "ours"), decoder=False).encode(images_BCHW)
    with torch.no_grad():
        theirs = peer.encode(normalise(images_BCHW)).image_tokens
    assert torch.equal(codes_BN.flatten(), theirs.flatten())
    assert codes_BN.unique().numel() > 300


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = write_taming(tmp_path, random_model(), callbacks={functools.partial: 1})
    with pytest.raises(StoreError, match=r"functools\.partial.*nothing foreign is unpickled.*save its tensors alone"):
        read(path)


def without(name: str) -> Any:
    return lambda state: {k: w for k, w in state.items() if k != name}


def with_(**more: Any) -> Any:
    return lambda state: state | {k.replace("__", "."): w for k, w in more.items()}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("encoder.mid.attn_1.q.weight"), r"missing: encoder\.mid\.attn_1\.q\.weight"),
        (without("encoder.down.0.downsample.conv.bias"), r"missing: encoder\.down\.0\.downsample\.conv\.bias"),
        (
            without("decoder.up.1.block.2.conv1.weight"),
            r"encoder, codebook and decoder.*missing: decoder\.up\.1\.block",
        ),
        (without("quantize.embedding.weight"), r"no tensor quantize\.embedding\.weight"),
        (with_(encoder__down__2__attn__0__q__weight=torch.ones(1)), r"attn\.0\.q\.weight means attention at a level"),
        (with_(quantize__used=torch.ones(3)), r"quantize\.used means a quantiser"),
        (with_(colorize=torch.ones(3)), "belonging to nothing: colorize"),
        (with_(encoder__conv_out__weight=torch.ones(96, 64, 3, 3)), "double_z"),
        (with_(encoder__conv_in__weight=torch.ones(32, 1, 3, 3)), "1 colour channels; expected 3"),
        (with_(encoder__conv_in__weight=torch.ones(0, 3, 3, 3)), r"conv_in\.weight has shape \(0, 3, 3, 3\) and so"),
        (with_(encoder__norm_out__weight=torch.ones(64).to_sparse()), r"norm_out\.weight is a sparse_coo tensor"),
        (
            lambda s: s | {"encoder.norm_out.weight": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
            r"norm_out\.weight is a nested tensor",
        ),
        (with_(encoder__norm_out__weight=torch.ones(64, device="meta")), r"norm_out\.weight is a meta tensor"),
        (
            with_(quantize__embedding__weight=torch.ones(1, 1).expand(10**10, 16)),
            r"embedding\.weight has shape \(10000000000, 16\) and the file holds 4 bytes",
        ),
        (
            with_(encoder__down__0__block__99999999__conv1__weight=torch.ones(64, 64, 3, 3)),
            "3 levels of 100000000 blocks, and there are",
        ),
        (
            with_(
                encoder__down__90__block__0__conv1__weight=torch.ones(1),
                encoder__down__0__block__90__conv1__weight=torch.ones(1),
            ),
            "91 levels of 91 blocks, and there are",
        ),
        (
            with_(**{f"encoder__down__0__block__{'9' * 5000}__conv1__weight": torch.ones(64, 64, 3, 3)}),
            "belonging to nothing",
        ),
        (with_(encoder__norm_out__weight=torch.ones(7)), r"norm_out\.weight has shape \(7,\) and should have \(64,\)"),
        (with_(encoder__norm_out__weight=torch.full((64,), torch.nan)), r"norm_out\.weight holds values that are not"),
        (with_(encoder__norm_out__weight=torch.ones(64).double()), r"norm_out\.weight is of type torch\.float64"),
        (with_(ema__encoder__conv_in__weight=torch.ones(1)), r"expected one image tokenizer.*found 2"),
        (lambda state: {"a": torch.ones(1)}, r"found none among 1 tensors"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: Any, says: str, tmp_path: Path) -> None:
    state = change(dict(random_model().state_dict()))
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    with pytest.raises(StoreError, match=says) as error:
        read(tmp_path / "vqgan.ckpt", resolution=32)
    assert "vqgan.ckpt" in str(error.value)


@pytest.mark.parametrize(
    ("dd", "says"),
    [
        ({"ch": 64}, "channels is 32, and its configuration says 64"),
        ({"ch_mult": [1, 2, 4]}, r"multipliers is \(1, 2, 2\), and its configuration says \(1, 2, 4\)"),
        ({"double_z": True}, r"ddconfig\.double_z is True; only False"),
        ({"attn_resolutions": [16]}, "attention at levels"),
        ({"attn_resolutions": [[16]]}, "attention at levels"),
        ({"resamp_with_conv": False}, r"resamp_with_conv is False; only True"),
        ({"num_res_blocks": "two"}, "num_res_blocks is 'two'; expected a whole number"),
        ({"resolution": 36 + 1}, "cannot be represented: resolution is 37"),
    ],
)
def test_a_configuration_that_says_otherwise(dd: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write_taming(tmp_path, random_model(), taming_yaml(SMALL, **dd))
    with pytest.raises(StoreError, match=says):
        read(path)


@pytest.mark.parametrize("key", ["ch", "ch_mult", "attn_resolutions", "double_z"])
def test_a_few_lines_that_unfold_to_gigabytes_are_named_in_a_few_words(key: str, tmp_path: Path) -> None:
    path = write_taming(tmp_path, random_model())
    lists = "".join(f"- &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    text = f"lists:\n- &l0 [x]\n{lists}model: {{params: {{ddconfig: {{{key}: *l11}}}}}}\n"
    (tmp_path / "vqgan.yaml").write_text(text)
    with pytest.raises(StoreError, match=key) as error:
        read(path)
    assert len(str(error.value)) < 2000


def test_attention_at_sides_that_never_occur_is_no_attention(tmp_path: Path) -> None:
    assert read(write_taming(tmp_path, random_model(), taming_yaml(SMALL, attn_resolutions=[7], dropout=0.1)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "got list"),
        ("model: {}", "describes no VQ-GAN"),
        ("a: [", "cannot be read"),
        ("[" * 5000, "cannot be read"),
        ("model: {params: {ddconfig: {ch: 0x" + "f" * 9000 + "}}}", "ch is a int too long to show; expected a whole"),
        ("model: {params: {ddconfig: {ch: 4294967296}}}", "ch is 4294967296; expected a whole number from 1 to 2147"),
    ],
)
def test_a_configuration_that_is_none(text: str, says: str, tmp_path: Path) -> None:
    path = write_taming(tmp_path, random_model())
    (tmp_path / "vqgan.yaml").write_text(text)
    with pytest.raises(StoreError, match=says):
        read(path)


def test_codes_that_are_renamed(tmp_path: Path) -> None:
    description = taming_yaml(SMALL)
    description["model"]["params"]["remap"] = "used.npy"
    with pytest.raises(StoreError, match="remap is 'used.npy'"):
        read(write_taming(tmp_path, random_model(), description))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("double_latent", True, r"vq_config\.double_latent is True"),
        ("attn_resolutions", [8], r"vq_config\.attn_resolutions"),
        ("attn_type", None, r"attn_type is None"),
        ("base_channels", 64, "channels is 32, and its configuration says 64"),
    ],
)
def test_a_configuration_of_transformers_that_says_otherwise(key: str, value: Any, says: str, tmp_path: Path) -> None:
    whole_chameleon(random_model()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vq_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StoreError, match=says):
        read(tmp_path)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing: no such file, and no folder"):
        find_files(str(tmp_path / "nothing"))
    path = write_taming(tmp_path, random_model())
    with pytest.raises(StoreError, match="missing.yaml: no such file"):
        find_files(str(path), str(tmp_path / "missing.yaml"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StoreError, match="not a checkpoint that torch can read; is it whole"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="neither a safetensors file nor a checkpoint"):
        read(path)
    torch.save([1, 2], path)
    with pytest.raises(StoreError, match="holds a list; expected state_dict"):
        read(path)


def test_shards(tmp_path: Path) -> None:
    model, folder = random_model(), tmp_path / "theirs"
    whole_chameleon(model).save_pretrained(folder, max_shard_size="150KB")
    files = find_files(str(folder))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(files.weights) == {f for name, f in index.items() if "vqmodel" in name}
    assert set(files.weights) < set(index.values())  # the rest of the model is never opened
    before = files.digest()
    other = next(f for f in sorted(set(index.values())) if f not in files.weights)
    (folder / other).write_bytes(b"")
    assert find_files(str(folder)).digest() == before
    assert read(folder).config == SMALL
    state = load_file(folder / files.weights[0])
    save_file({name: w + 1 for name, w in state.items()}, folder / files.weights[0])
    assert find_files(str(folder)).digest() != before
    (folder / files.weights[0]).unlink()
    with pytest.raises(StoreError, match=r"no such file; model\.safetensors\.index\.json beside it names it"):
        read(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"vqmodel.x": "../x"}}')
    with pytest.raises(StoreError, match="expected files of the same folder"):
        find_files(str(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"vqmodel.x": ["x"]}}')
    with pytest.raises(StoreError, match=r"names \['x'\]; expected files of the same folder"):
        find_files(str(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"vqmodel.x": "x\\u0000"}}')
    with pytest.raises(StoreError, match="expected files of the same folder"):
        find_files(str(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [[1, "x"]]}')
    with pytest.raises(StoreError, match="weight_map is a list"):
        find_files(str(folder))
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(StoreError, match="not an index"):
        find_files(str(folder))


def test_from_s3(s3_bucket: str, tmp_path: Path) -> None:
    model = random_model()
    path = write_taming(tmp_path, model)
    store = Storage(s3_bucket)
    for name in ("vqgan.ckpt", "vqgan.yaml"):
        store.put(name, (tmp_path / name).read_bytes())
    files = find_files(f"{s3_bucket}/vqgan.ckpt")
    assert files.digest() == find_files(str(path)).digest()
    with files.on_disk() as copies:
        found = import_weights(copies)
    assert found.config == SMALL
    assert all(torch.equal(w, found.weights[name]) for name, w in model.state_dict().items())


OURS = SMALL.model_copy(update={"norm_groups": 16, "resolution": 64})


def test_of_our_own_folder_the_file_that_is_named_is_read(tmp_path: Path) -> None:
    new, old = random_model(OURS, seed=1), random_model(OURS, seed=2)
    save_image_tokenizer(Storage(tmp_path), OURS, new.state_dict())
    halves = {name: w.half() for name, w in old.state_dict().items()}
    save_file(halves, tmp_path / "older.safetensors")
    found = read(tmp_path / "older.safetensors")
    assert (found.config, found.layout, found.dtype) == (OURS, "calumma", "float16")
    assert {w.dtype for w in found.weights.values()} == {torch.float32}
    assert all(torch.equal(w.float(), found.weights[name]) for name, w in halves.items())
    assert found.weights.keys() == halves.keys()
    whole = read(tmp_path)
    assert all(torch.equal(w, whole.weights[name]) for name, w in new.state_dict().items())


def test_our_own_description_counts_wherever_it_lies(tmp_path: Path) -> None:
    model = random_model(OURS)
    save_image_tokenizer(Storage(tmp_path / "ours"), OURS, model.state_dict())
    (tmp_path / "ours" / "config.json").rename(tmp_path / "elsewhere.json")
    found = read(tmp_path / "ours", tmp_path / "elsewhere.json")
    assert (found.config, found.layout) == (OURS, "calumma")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "some.ckpt")
    assert read(tmp_path / "some.ckpt", tmp_path / "elsewhere.json").config == OURS


def test_our_own_layout_is_checked_as_any_other(tmp_path: Path) -> None:
    state = dict(random_model(OURS).state_dict())
    store = Storage(tmp_path)
    save_image_tokenizer(store, OURS, without("encoder.mid.attn_1.q.weight")(state))
    with pytest.raises(StoreError, match=r"missing: encoder\.mid\.attn_1\.q\.weight"):
        read(tmp_path)
    save_image_tokenizer(store, OURS.model_copy(update={"codes": 65}), state)
    with pytest.raises(StoreError, match="codes is 64, and its configuration says 65"):
        read(tmp_path)
    for text in ('{"format": "calumma-image-tokenizer 99"}', '{"format": "calumma-image-tokenizer 1", "codes": -1}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(StoreError, match=r"config\.json: .*(version 99|not an image tokenizer's configuration)"):
            read(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match=r"config\.json: cannot be read"):
        read(tmp_path)


def test_tensors_that_share_their_memory_can_be_kept(tmp_path: Path) -> None:
    state = dict(random_model().state_dict())
    state["encoder.norm_out.bias"] = state["encoder.norm_out.weight"]
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    found = read(tmp_path / "vqgan.ckpt", resolution=32)
    save_image_tokenizer(Storage(tmp_path / "ours"), found.config, found.weights)
    kept = load_image_tokenizer(Storage(tmp_path / "ours")).model.encoder.norm_out
    assert torch.equal(kept.bias, state["encoder.norm_out.weight"])


def test_our_own_layout_from_s3(s3_bucket: str) -> None:
    model, store = random_model(OURS), Storage(s3_bucket).sub("tokenizer")
    save_image_tokenizer(store, OURS, model.state_dict())
    with find_files(store.root).on_disk() as copies:
        found = import_weights(copies)
    assert (found.config, found.layout) == (OURS, "calumma")
    assert all(torch.equal(w, found.weights[name]) for name, w in model.state_dict().items())


def test_a_yaml_without_model_at_its_top(tmp_path: Path) -> None:
    path = write_taming(tmp_path, random_model())
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(taming_yaml(SMALL)["model"]["params"]))
    assert read(path).config == SMALL
