"""The networks: LocNet (where vertebrae are) and FracNet / FracSegNet (grade, and mask, of the one in a crop's centre).

Source: thesis 3.2 (LocNet) and 3.3 (FracNet, FracSegNet). Widths and depth are configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.anatomy import LEVEL_NAMES
from runtime.bundle_json import MAY_BE_MISSING

GRADES = 4
HEIGHTS = 6


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the backbone.

    Args:
        channels: width of each encoder block; every block is followed by a 2x max pooling.
        bottleneck: width of the block below the last pooling.
        leak: negative slope of the LeakyReLU.
    """

    channels: tuple[int, ...] = (16, 32, 64, 96)
    bottleneck: int = 128
    leak: float = 0.01

    @property
    def multiple(self) -> int:
        """Input sizes must be multiples of this many voxels."""
        return int(2 ** len(self.channels))

    def without_first(self) -> UNetConfig:
        """The levels below the first: what is left of it where voxels are twice the size."""
        return UNetConfig(self.channels[1:], self.bottleneck, self.leak)


@dataclass(frozen=True)
class LocNetConfig:
    """Shape of LocNet.

    Args:
        unet: backbone.
        variant: ``"F"`` (heatmap and offsets) or ``"H"`` (heatmap only).
        heatmap_prior: the heat that an untrained network predicts everywhere; the thesis's zero bias gives 0.5.
        stem: channels of a stem that brings the image to voxels of twice the size, on which the backbone then works;
            the head goes back. Half the operations of a backbone with a level more (decision 0026). 0, as in a
            configuration without this key, for none.
    """

    unet: UNetConfig = UNetConfig()
    variant: str = "F"
    heatmap_prior: float = 0.02
    stem: int = field(default=0, metadata=MAY_BE_MISSING)

    def __post_init__(self) -> None:
        if self.variant not in ("F", "H"):
            raise ValueError(f"LocNet's variant is 'F' or 'H'; met {self.variant!r}.")
        if self.stem < 0:
            raise ValueError(f"The stem's channels are a number from 0 on; met {self.stem}.")

    @property
    def multiple(self) -> int:
        """Sizes of images must be multiples of this many voxels."""
        return self.unet.multiple * (2 if self.stem else 1)


@dataclass(frozen=True)
class FracSegNetConfig:
    """FracSegNet, or FracNet when ``mask_channels`` is empty.

    Args:
        unet: backbone.
        mask_channels: what each mask channel means; ``"vertebra"`` first. ``()`` makes it FracNet (grade only).
        grade_head: ``"pooled"`` is the thesis's: global average pooling of the last decoder features. ``"spatial"``
            keeps the layout: pooled mask probabilities and deep features go through strided convolutions without
            normalisation. (Instance normalisation gives every feature map the mean 0, so what an average pool after
            it can say about sizes is next to nothing: decision 0003.)
        dropout: after the first two fully connected layers.
        heights: whether to regress anterior, middle and posterior height (mm) and their relative losses as well.
        crop: edge of the cubic input, voxels.
    """

    unet: UNetConfig = UNetConfig()
    mask_channels: tuple[str, ...] = ("vertebra", "body")
    grade_head: str = "spatial"
    dropout: float = 0.2
    heights: bool = True
    crop: int = 48

    def __post_init__(self) -> None:
        if self.crop % max(16, self.unet.multiple):
            raise ValueError(f"The crop is a multiple of {max(16, self.unet.multiple)} voxels; met {self.crop}.")
        if self.grade_head not in ("pooled", "spatial"):
            raise ValueError(f"The grade head is 'pooled' or 'spatial'; met {self.grade_head!r}.")
        if self.grade_head == "spatial" and not self.mask_channels:
            raise ValueError("The 'spatial' grade head reads the mask, so it needs at least one mask channel.")


@dataclass(frozen=True)
class LevelNetConfig:
    """Shape of LevelNet: which vertebra is in the middle of a wide, coarse crop.

    Args:
        stem: width of the first convolution, 5x5x5 with stride 2.
        channels: width of each encoder block after it; every block is followed by a 2x max pooling.
        squeeze: width of the convolution whose every voxel is read by the fully connected layers.
        hidden: width of the fully connected layer.
        dropout: before the last layer.
        crop_zyx: input, voxels; multiples of ``reduction``.
        leak: negative slope of the LeakyReLU.
    """

    stem: int = 16
    channels: tuple[int, ...] = (32, 48, 64)
    squeeze: int = 64
    hidden: int = 192
    dropout: float = 0.2
    crop_zyx: tuple[int, int, int] = (64, 48, 48)
    leak: float = 0.01

    def __post_init__(self) -> None:
        if any(size % self.reduction for size in self.crop_zyx):
            raise ValueError(f"The crop's sizes are multiples of {self.reduction} voxels; met {self.crop_zyx}.")

    @property
    def reduction(self) -> int:
        """How many voxels of the crop, along each axis, are one of the last feature map."""
        return int(2 ** (len(self.channels) + 1))


class ConvBlock(nn.Sequential):
    """Two 3x3x3 convolutions, each followed by instance normalisation and LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, leak: float) -> None:
        layers: list[nn.Module] = []
        for width in (inputs, outputs):
            layers += [
                nn.Conv3d(width, outputs, 3, padding=1, bias=False),
                nn.InstanceNorm3d(outputs, affine=True),
                nn.LeakyReLU(leak, inplace=True),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """3D U-Net. Returns the decoder's feature maps, coarsest (the bottleneck) first, full resolution last."""

    def __init__(self, config: UNetConfig, *, inputs: int = 1) -> None:
        super().__init__()
        self.config = config
        widths = (inputs, *config.channels)
        self.encoder = nn.ModuleList(
            ConvBlock(before, after, config.leak) for before, after in zip(widths, config.channels, strict=False)
        )
        self.bottleneck = ConvBlock(config.channels[-1], config.bottleneck, config.leak)
        below = (config.bottleneck, *reversed(config.channels[1:]))
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(before, after, 2, stride=2)
            for before, after in zip(below, reversed(config.channels), strict=True)
        )
        self.decoder = nn.ModuleList(ConvBlock(2 * width, width, config.leak) for width in reversed(config.channels))

    def forward(self, image: Tensor) -> list[Tensor]:
        """``image`` (n, inputs, z, y, x) with sizes that are multiples of ``config.multiple``."""
        return self.both_ways(image)[1]

    def both_ways(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The encoder's feature maps, full resolution first, and the decoder's, as ``forward`` gives them."""
        x, skips = image, []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = F.max_pool3d(x, 2)
        features = [self.bottleneck(x)]
        for up, block, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            features.append(block(torch.cat([up(features[-1]), skip], dim=1)))
        return skips, features


def initialise(module: nn.Module, leak: float) -> None:
    """He initialisation of all convolutions and linear layers, biases zero (thesis 3.2.3)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, a=leak, nonlinearity="leaky_relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class LocNet(nn.Module):
    """Heatmap of vertebral centres and, for variant F, each voxel's offset to its nearest centre."""

    def __init__(self, config: LocNetConfig) -> None:
        super().__init__()
        self.config = config
        first, outputs = config.unet.channels[0], 4 if config.variant == "F" else 1
        self.stem = _stem(config.stem, config.unet.leak) if config.stem else nn.Identity()
        self.unet = UNet(config.unet, inputs=config.stem or 1)
        head = nn.ConvTranspose3d(first, outputs, 2, stride=2) if config.stem else nn.Conv3d(first, outputs, 1)
        self.head: nn.Module = head
        initialise(self, config.unet.leak)
        nn.init.normal_(self.head.weight, std=0.01)
        with torch.no_grad():
            bias = torch.zeros(outputs)
            bias[0] = math.log(config.heatmap_prior / (1 - config.heatmap_prior))
            self.head.bias = nn.Parameter(bias)

    def forward(self, image: Tensor, *, with_features: bool = False) -> tuple[Any, ...]:
        """Heatmap (n, 1, z, y, x) in 0..1 and, for variant F, offsets (n, 3, z, y, x): voxels, in z, y, x order.

        With features: these in a tuple, and in another what enters and what leaves the levels at half the image's
        resolution, (n, c, z/2, y/2, x/2) each, which networks with and without a stem have in common.
        """
        stem = self.stem(image)
        skips, features = self.unet.both_ways(stem)
        said = self._said(features[-1])
        if not with_features:
            return said
        if self.config.stem:
            return said, (stem, features[-1])
        return said, (F.max_pool3d(skips[0], 2), features[-2])

    def _said(self, features: Tensor) -> tuple[Tensor, ...]:
        out = self.head(features).float()
        heatmap = torch.sigmoid(out[:, :1])
        return (heatmap, out[:, 1:]) if self.config.variant == "F" else (heatmap,)


def _stem(outputs: int, leak: float) -> nn.Sequential:
    """From an image to ``outputs`` channels of half its resolution, by a convolution of stride 2."""
    return nn.Sequential(
        nn.Conv3d(1, 2 * outputs, 4, stride=2, padding=1, bias=False),
        nn.InstanceNorm3d(2 * outputs, affine=True), nn.LeakyReLU(leak, inplace=True),
        nn.Conv3d(2 * outputs, outputs, 3, padding=1, bias=False),
        nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(leak, inplace=True),
    )  # fmt: skip


class SpatialGradeFeatures(nn.Module):
    """Mask probabilities and deep features, kept in place, to a vector: no normalisation, no global pooling."""

    OUTPUTS = 256

    def __init__(self, masks: int, deep: int, crop: int, width: int = 32) -> None:
        super().__init__()
        self.squeeze = nn.Conv3d(deep, 16, 1)
        self.first = nn.Conv3d(masks + 16, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1, stride=2)
        self.third = nn.Conv3d(width, width, 3, padding=1, stride=2)
        self.out = nn.Linear(width * (crop // 16) ** 3, self.OUTPUTS)

    def forward(self, masks: Tensor, deep: Tensor) -> Tensor:
        """Masks (n, k, z, y, x) in 0..1 and deep features (n, c, z/4, y/4, x/4) to (n, OUTPUTS)."""
        x = torch.cat([F.avg_pool3d(masks, 4), F.leaky_relu(self.squeeze(deep))], dim=1)
        for layer in (self.first, self.second, self.third):
            x = F.leaky_relu(layer(x), 0.01)
        return self.out(x.flatten(1))


class FracSegNet(nn.Module):
    """Mask, grade and heights of the vertebra at the crop's centre; FracNet when there are no mask channels."""

    def __init__(self, config: FracSegNetConfig) -> None:
        super().__init__()
        self.config = config
        unet = config.unet
        self.unet = UNet(unet)
        self.mask_head = nn.Conv3d(unet.channels[0], len(config.mask_channels), 1) if config.mask_channels else None
        self.spatial = (
            SpatialGradeFeatures(len(config.mask_channels), unet.channels[2], config.crop)
            if config.grade_head == "spatial"
            else None
        )
        inputs = SpatialGradeFeatures.OUTPUTS if self.spatial else unet.channels[0]
        self.fully_connected = nn.Sequential(
            nn.Linear(inputs, 256), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(256, 128), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(128, 64), nn.ReLU(),
        )  # fmt: skip
        self.grade_head = nn.Linear(64, GRADES)
        self.height_head = nn.Linear(inputs, HEIGHTS) if config.heights else None
        initialise(self, unet.leak)
        if self.height_head is not None:
            nn.init.normal_(self.height_head.weight, std=0.01)
            with torch.no_grad():  # start at an average vertebra: 22 mm high, nothing lost
                self.height_head.bias.copy_(torch.tensor([0.73, 0.73, 0.73, 0.05, 0.05, 0.05]))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those that every output depends on: the U-Net's."""
        return list(self.unet.parameters())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``image`` (n, 1, z, y, x) to ``mask`` logits (n, k, z, y, x), ``grade`` logits (n, 4), ``heights`` (n, 6).

        Heights are anterior, middle and posterior height in units of 30 mm, then their relative losses.
        """
        features = self.unet(image)
        out: dict[str, Tensor] = {}
        if self.mask_head is not None:
            out["mask"] = self.mask_head(features[-1]).float()
        if self.spatial is None:
            vector = features[-1].float().mean(dim=(2, 3, 4))
        else:
            vector = self.spatial(torch.sigmoid(out["mask"]), features[-3])
        out["grade"] = self.grade_head(self.fully_connected(vector)).float()
        if self.height_head is not None:
            out["heights"] = self.height_head(vector).float()
        return out


HEIGHT_UNIT_MM = 30.0


class FracSegNetOutputs(nn.Module):
    """FracSegNet as it is deployed: probabilities, not logits; heights in mm. One tuple, in the bundle's order."""

    def __init__(self, network: FracSegNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``mask`` (n, k, z, y, x) and ``grade`` (n, 4) in 0..1, then ``heights`` (n, 6): mm and relative losses."""
        out = self.network(image)
        result = [torch.sigmoid(out["mask"]), torch.softmax(out["grade"], dim=1)]
        if "heights" in out:
            heights = out["heights"]
            result.append(torch.cat([heights[:, :3] * HEIGHT_UNIT_MM, heights[:, 3:].clamp(0, 1)], dim=1))
        return tuple(result)


class LevelNet(nn.Module):
    """Which level is the vertebra in the crop's middle, or is it none?

    Where things lie in the crop decides, so the last feature map is read voxel by voxel and not pooled (decision 0003).
    """

    def __init__(self, config: LevelNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(
            nn.Conv3d(1, config.stem, 5, padding=2, stride=2, bias=False),
            nn.InstanceNorm3d(config.stem, affine=True),
            nn.LeakyReLU(config.leak, inplace=True),
        )
        widths = (config.stem, *config.channels)
        self.encoder = nn.ModuleList(
            ConvBlock(before, after, config.leak) for before, after in zip(widths, config.channels, strict=False)
        )
        self.squeeze = nn.Conv3d(config.channels[-1], config.squeeze, 3, padding=1)
        voxels = math.prod(size // config.reduction for size in config.crop_zyx)
        self.fully_connected = nn.Sequential(
            nn.Linear(config.squeeze * voxels, config.hidden), nn.ReLU(), nn.Dropout(config.dropout)
        )
        self.head = nn.Linear(config.hidden, len(LEVEL_NAMES))
        initialise(self, config.leak)

    def forward(self, image: Tensor) -> Tensor:
        """``image`` (n, 1, z, y, x) to logits (n, 27) in the order of ``LEVEL_NAMES``."""
        x = self.stem(image)
        for block in self.encoder:
            x = F.max_pool3d(block(x), 2)
        x = F.leaky_relu(self.squeeze(x), self.config.leak)
        return self.head(self.fully_connected(x.flatten(1))).float()


class LevelNetOutputs(nn.Module):
    """LevelNet as it is deployed: probabilities (n, 27)."""

    def __init__(self, network: LevelNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """``level`` (n, 27) in 0..1, rows sum to 1."""
        return (torch.softmax(self.network(image), dim=1),)
