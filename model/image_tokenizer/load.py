"""The finished image tokenizer: pictures to codes and back, and how it is kept.

A tokenizer is two files: ``model.safetensors`` (taming's names) and ``config.json`` (:class:`ImageTokenizerConfig`).
One that came from ``transformers`` has no decoder: its weights' names say so, nothing else does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import entry
from infra.store.manifest import FileEntry
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.fast import Precision, compiled, exact_float32, lower
from model.image_tokenizer.vqgan import VQModel, normalise, to_pixels

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = "calumma-image-tokenizer 1"
DECODER = "decoder."
"""What its tensors' names begin with; ``post_quant_conv`` is in every layout."""
NO_DECODER = (
    "this image tokenizer is an encoder only, so it makes codes of pictures and no pictures of codes. It came from "
    "transformers' weights, which hold no decoder; import the vqgan.ckpt that belongs to them instead "
    "(docs/image-tokenizer-weights.md)."
)


ELEMENTS_AT_ONCE = 1 << 25
"""Elements of the widest activation, on a CPU: 128 MiB in float32, one picture of Chameleon's."""


class ImageTokenizer:
    """Pictures to codes and back, without gradients. uint8 in, uint8 out."""

    def __init__(self, model: VQModel, precision: Precision = "fp32", compile: bool = False) -> None:
        """Takes the model over.

        Args:
            model: In float32, on its device.
            precision: Of the encoder, see ``fast.py``; decoding is always in float32.
            compile: Encode through ``torch.compile``, which wants batches of one size.
        """
        # Channels last is what makes convolutions fast, and being always the same it keeps codes the same.
        self.model: VQModel = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.eval().requires_grad_(False)
        self.config = model.config
        self.precision: Precision = precision
        if precision == "bf16":
            lower(self.model.encoder)
        self._codes = compiled(self._encode, self.device) if compile else self._encode

    @property
    def device(self) -> torch.device:
        return self.model.quantize.embedding.weight.device

    @property
    def has_decoder(self) -> bool:
        """Whether it can decode."""
        return self.model.has_decoder

    @torch.inference_mode()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Codes (B, codes_per_image) int64 of pictures (B, 3, resolution, resolution) uint8.

        float32 is exact: no TF32, whatever the process is set to. The last bit of a latent, and so rarely a code, may
        depend on the batch's composition and size.
        """
        side = self.config.resolution
        if images_BCHW.dtype != torch.uint8 or images_BCHW.shape[1:] != (3, side, side):
            raise ValueError(
                f"expected uint8 pictures of shape (B, 3, {side}, {side}); "
                f"got {images_BCHW.dtype} of shape {tuple(images_BCHW.shape)}"
            )
        with exact_float32():
            return torch.cat([self._codes(part) for part in self._parts(images_BCHW.to(self.device))])

    def _encode(self, images_BCHW: Tensor) -> Tensor:
        return self.model.encode(normalise(images_BCHW).contiguous(memory_format=torch.channels_last))

    @torch.inference_mode()
    def decode(self, codes_BN: Tensor) -> Tensor:
        """Pictures (B, 3, resolution, resolution) uint8 of codes (B, codes_per_image).

        Raises:
            StoreError: The tokenizer has no decoder.
            ValueError: A code is outside the codebook, or their number is not a picture's.
        """
        if not self.has_decoder:
            raise StoreError(NO_DECODER)
        if len(codes_BN):
            low, high = int(codes_BN.min()), int(codes_BN.max())
            if low < 0 or high >= self.config.codes:
                raise ValueError(f"codes from {low} to {high}; they must be 0 to {self.config.codes - 1}")
        with exact_float32():
            parts = self._parts(codes_BN.to(self.device).long())
            return torch.cat([to_pixels(self.model.decode(part)) for part in parts])

    def _parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        """The batch in parts of a size that the configuration alone decides; on a GPU in one."""
        if self.device.type != "cpu":
            return (batch,)
        return torch.split(batch, max(1, ELEMENTS_AT_ONCE // (self.config.channels * self.config.resolution**2)))


def save_image_tokenizer(
    store: Storage, config: ImageTokenizerConfig, weights: Mapping[str, Tensor]
) -> list[FileEntry]:
    """Writes the two files into a folder; their manifest entries."""
    from safetensors.torch import save

    tensors = {name: weights[name].detach().to("cpu").contiguous() for name in sorted(weights)}
    facts = {"format": FORMAT, **config.model_dump(mode="json")}
    files = {
        CONFIG: (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode(),
        WEIGHTS: save(tensors, metadata={"format": FORMAT}),
    }
    for name, data in sorted(files.items()):
        store.put(name, data)
    return [entry(name, files[name]) for name in sorted(files)]


def load_image_tokenizer(
    store: Storage,
    device: str = "cpu",
    *,
    decoder: bool = True,
    precision: Precision = "fp32",
    compile: bool = False,
) -> ImageTokenizer:
    """Reads a tokenizer from its folder; StoreError if the files are missing, foreign, newer, or do not fit.

    ``decoder=False`` leaves the decoder's weights where they are, for who only encodes; for the rest see
    :class:`ImageTokenizer`.
    """
    config, weights = read_image_tokenizer(store, decoder)
    with torch.device("meta"):
        model = VQModel(config, decoder=has_decoder(weights))
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as e:
        where = store.url(CONFIG)
        raise StoreError(f"{store.url(WEIGHTS)}: not the weights that {where} describes ({e})") from e
    return ImageTokenizer(model.to(device), precision, compile)


def read_image_tokenizer(store: Storage, decoder: bool = True) -> tuple[ImageTokenizerConfig, dict[str, Tensor]]:
    """The configuration and the weights in a tokenizer's folder; see :func:`load_image_tokenizer`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    where = store.url(CONFIG)
    config = parse_config(store.get(CONFIG), where)
    try:
        weights = load(store.get(WEIGHTS))
    except SafetensorError as e:
        raise StoreError(f"{store.url(WEIGHTS)}: not the weights that {where} describes ({e})") from e
    return config, {name: w for name, w in weights.items() if decoder or not name.startswith(DECODER)}


def parse_config(data: bytes, where: str) -> ImageTokenizerConfig:
    """The configuration in a ``config.json`` of ours; StoreError, which names ``where``, if it is none or newer."""
    try:
        facts = json.loads(data)
        name, _, version = str(facts.pop("format", "unmarked 0")).partition(" ")
        if name != FORMAT.split()[0] or int(version) > int(FORMAT.split()[1]):
            raise StoreError(f"{where}: this is {name} version {version}; expected {FORMAT} or older")
        return ImageTokenizerConfig.model_validate(facts)
    except (ValueError, AttributeError, TypeError, RecursionError) as e:
        raise StoreError(f"{where}: not an image tokenizer's configuration ({e})") from e


def has_decoder(weights: Iterable[str]) -> bool:
    """Whether there is a decoder among these names of tensors."""
    return any(name.startswith(DECODER) for name in weights)
