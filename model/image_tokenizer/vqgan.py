"""The VQ-GAN's generator: convolutional encoder, vector quantiser, convolutional decoder.

The layout and the parameters' names are those of taming-transformers' ``VQModel`` (Esser et al., 2021), which
Chameleon's image tokenizer shares (paper, section 2.1), so that such weights load unchanged. Shapes: B batch,
C channels, H and W height and width, N = H·W positions of the code grid in raster order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.image_tokenizer.colours import evened_colours
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.norm import normalised
from model.image_tokenizer.quantize import VectorQuantizer


class Output(NamedTuple):
    """What a training forward yields."""

    reconstruction_BCHW: Tensor
    """Float, about -1 … 1."""
    latents_BCHW: Tensor
    """The encoder's output before quantisation, (B, embed_dim, grid, grid)."""
    codes_BN: Tensor
    """int64."""
    commitment: Tensor
    """Mean squared distance that the encoder is asked to close; a scalar."""
    codebook: Tensor
    """Mean squared distance that the codebook is asked to close; a scalar."""


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self._projects = in_channels != out_channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(normalised(self.norm1, x_BCHW, activate=True))
        h_BCHW = self.conv2(normalised(self.norm2, h_BCHW, activate=True))
        # In place, here and elsewhere without gradients: on a CPU a new tensor costs more than the sum.
        return h_BCHW.add_(self.nin_shortcut(x_BCHW) if self._projects else x_BCHW)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """One head over all positions, around a shortcut."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = normalised(self.norm, x_BCHW)
        q_B1NC, k_B1NC, v_B1NC = (
            f(h_BCHW).flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for f in (self.q, self.k, self.v)
        )
        h_B1NC = F.scaled_dot_product_attention(q_B1NC, k_B1NC, v_B1NC)
        return x_BCHW + self.proj_out(h_B1NC.squeeze(1).transpose(1, 2).reshape(x_BCHW.shape))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halves the side by a strided convolution, padded at the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Doubles the side: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Level(nn.Module):
    """The blocks of one side length, and the change to the next where there is one."""

    block: nn.ModuleList
    downsample: Downsample
    upsample: Upsample


class Middle(nn.Module):
    """Block, attention, block at the code grid's side."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = SelfAttention(channels, groups)
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """(B, 3, side, side) to (B, z_channels, grid, grid)."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.channels
        for index, multiplier in enumerate(config.multipliers):
            # The first block of a level widens; like taming's, it starts from the level before's width.
            level, level.block = Level(), nn.ModuleList()
            for _ in range(config.residual_blocks):
                level.block.append(ResidualBlock(channels, config.channels * multiplier, config.norm_groups))
                channels = config.channels * multiplier
            if index != len(config.multipliers) - 1:
                level.downsample = Downsample(channels)
            self.down.append(level)
        self.mid = Middle(channels, config.norm_groups)
        self.norm_out = _norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, config.z_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(x_BCHW.to(self.conv_in.weight.dtype))
        for level in self.down:
            assert isinstance(level, Level)
            for block in level.block:
                h_BCHW = block(h_BCHW)
            if hasattr(level, "downsample"):
                h_BCHW = level.downsample(h_BCHW)
        h_BCHW = self.mid(h_BCHW).to(self.conv_out.weight.dtype)
        return self.conv_out(normalised(self.norm_out, h_BCHW, activate=True))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """(B, z_channels, grid, grid) to (B, 3, side, side); one residual block a level more than the encoder."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        channels = config.channels * config.multipliers[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels, config.norm_groups)
        levels: list[Level] = []
        for index, multiplier in reversed(list(enumerate(config.multipliers))):
            level, level.block = Level(), nn.ModuleList()
            for _ in range(config.residual_blocks + 1):
                level.block.append(ResidualBlock(channels, config.channels * multiplier, config.norm_groups))
                channels = config.channels * multiplier
            if index != 0:
                level.upsample = Upsample(channels)
            levels.insert(0, level)  # numbered from the full side, as the encoder's are
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        h_BCHW = self.mid(self.conv_in(z_BCHW))
        for level in reversed(list(self.up)):
            assert isinstance(level, Level)
            for block in level.block:
                h_BCHW = block(h_BCHW)
            if hasattr(level, "upsample"):
                h_BCHW = level.upsample(h_BCHW)
        return self.conv_out(normalised(self.norm_out, h_BCHW, activate=True))  # type: ignore[no-any-return]


class VQModel(nn.Module):
    """Encoder, quantiser and decoder. Pictures are float, -1 … 1.

    Without a decoder (``decoder=False``) it encodes only: what ``transformers`` has, and all that ``encode`` needs.
    """

    def __init__(self, config: ImageTokenizerConfig, decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.quantize = VectorQuantizer(config.codes, config.embed_dim)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        self.has_decoder = decoder
        if decoder:
            self.decoder = Decoder(config)
        self._initialise()

    def _initialise(self) -> None:
        """Weights that keep a signal's variance, no biases, and residual branches that start at a tenth.

        With torch's defaults the chain of plain convolutions around the quantiser shrinks what differs between
        positions far below the biases, and the decoder needs hundreds of steps to see its input. The first convolution
        starts on colours of even strength: photographs have so little green against magenta that an encoder which must
        find it by itself has given up on it long before the codebook starts.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                gain = 0.1 if name.endswith(("conv2", "proj_out")) else 1.0
                nn.init.normal_(module.weight, std=gain / math.sqrt(module.weight[0].numel()))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            weight = self.encoder.conv_in.weight
            weight.copy_(torch.einsum("oikl,ij->ojkl", weight, evened_colours()))

    def latents(self, x_BCHW: Tensor) -> Tensor:
        """What is quantised: (B, embed_dim, grid, grid)."""
        return self.quant_conv(self.encoder(x_BCHW))  # type: ignore[no-any-return]

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Codes (B, N) int64 in raster order."""
        return self.quantize.codes(self.latents(x_BCHW))

    def decode_latents(self, z_BCHW: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z_BCHW))  # type: ignore[no-any-return]

    def decode(self, codes_BN: Tensor) -> Tensor:
        """Pictures (B, 3, side, side), float, about -1 … 1."""
        batch, count = codes_BN.shape
        grid = self.config.grid
        if count != grid * grid:
            raise ValueError(f"{count} codes a picture; this tokenizer's pictures have {grid}x{grid} = {grid * grid}")
        z_BHWC = self.quantize.embedding(codes_BN).view(batch, grid, grid, -1)
        return self.decode_latents(z_BHWC.permute(0, 3, 1, 2))

    def forward(self, x_BCHW: Tensor, quantised: bool = True) -> Output:
        """A training pass; ``quantised=False`` lets the latents through as they are (the codebook's warm-up)."""
        latents_BCHW = self.latents(x_BCHW)
        if not quantised:
            zero = latents_BCHW.new_zeros(())
            codes_BN = torch.zeros(len(x_BCHW), self.config.codes_per_image, dtype=torch.int64, device=x_BCHW.device)
            return Output(self.decode_latents(latents_BCHW), latents_BCHW, codes_BN, zero, zero)
        z_BCHW, codes_BN, commitment, codebook = self.quantize(latents_BCHW)
        return Output(self.decode_latents(z_BCHW), latents_BCHW, codes_BN, commitment, codebook)


def normalise(pictures_BCHW: Tensor) -> Tensor:
    """uint8 0 … 255 to float -1 … 1, as the released checkpoints expect: x/255·2 - 1."""
    return pictures_BCHW.float().div(255).mul(2).sub(1)


def to_pixels(x_BCHW: Tensor) -> Tensor:
    """Float -1 … 1 (clamped) to uint8 0 … 255, rounded."""
    return x_BCHW.float().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
