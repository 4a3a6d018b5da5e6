"""The finished image tokenizer: pictures to codes and back, and how it is kept.

A tokenizer is two files: ``model.safetensors`` (taming's names) and ``config.json`` (:class:`ImageTokenizerConfig`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import entry
from infra.store.manifest import FileEntry
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.vqgan import VQModel, normalise, to_pixels

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = "calumma-image-tokenizer 1"


class ImageTokenizer:
    """Pictures to codes and back, without gradients. uint8 in, uint8 out."""

    def __init__(self, model: VQModel) -> None:
        # Channels last is what makes CPU convolutions fast, and being always the same it keeps codes the same.
        self.model: VQModel = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.eval().requires_grad_(False)
        self.config = model.config

    @property
    def device(self) -> torch.device:
        return self.model.quantize.embedding.weight.device

    @torch.inference_mode()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Codes (B, codes_per_image) int64 of pictures (B, 3, resolution, resolution) uint8.

        In fp32 the last bit of a latent, and so rarely a code, may depend on the batch's composition and size.
        """
        side = self.config.resolution
        if images_BCHW.dtype != torch.uint8 or images_BCHW.shape[1:] != (3, side, side):
            raise ValueError(
                f"expected uint8 pictures of shape (B, 3, {side}, {side}); "
                f"got {images_BCHW.dtype} of shape {tuple(images_BCHW.shape)}"
            )
        x_BCHW = normalise(images_BCHW.to(self.device)).contiguous(memory_format=torch.channels_last)
        return self.model.encode(x_BCHW)

    @torch.inference_mode()
    def decode(self, codes_BN: Tensor) -> Tensor:
        """Pictures (B, 3, resolution, resolution) uint8 of codes (B, codes_per_image)."""
        if len(codes_BN):
            low, high = int(codes_BN.min()), int(codes_BN.max())
            if low < 0 or high >= self.config.codes:
                raise ValueError(f"codes from {low} to {high}; they must be 0 to {self.config.codes - 1}")
        return to_pixels(self.model.decode(codes_BN.to(self.device).long()))


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


def load_image_tokenizer(store: Storage, device: str = "cpu") -> ImageTokenizer:
    """Reads a tokenizer from its folder; StoreError if the files are missing, foreign, newer, or do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    where = store.url(CONFIG)
    try:
        facts = json.loads(store.get(CONFIG))
        name, _, version = str(facts.pop("format", "unmarked 0")).partition(" ")
        if name != FORMAT.split()[0] or int(version) > int(FORMAT.split()[1]):
            raise StoreError(f"{where}: this is {name} version {version}; expected {FORMAT} or older")
        config = ImageTokenizerConfig.model_validate(facts)
    except (ValueError, AttributeError) as e:
        raise StoreError(f"{where}: not an image tokenizer's configuration ({e})") from e
    with torch.device("meta"):
        model = VQModel(config)
    try:
        weights = load(store.get(WEIGHTS))
        model.load_state_dict(weights, assign=True)
    except (SafetensorError, RuntimeError) as e:
        raise StoreError(f"{store.url(WEIGHTS)}: not the weights that {where} describes ({e})") from e
    return ImageTokenizer(model.to(device))
