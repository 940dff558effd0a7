"""EfficientNet-Lite (Tan & Le 2019; Liu 2020) with its ImageNet-1k weights: a small convolutional tower, frozen.

The "lite" family has no squeeze-and-excitation and ReLU6 for swish; the width of stem and head does not scale.
Shapes: B batch, C channels, h × w feature map (height / 32 × width / 32).
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diptych.models.pretrained.packages import require


class Variant(NamedTuple):
    """Multipliers of width and depth, and the native image size."""

    width: float
    depth: float
    resolution: int  # of training; any size works


VARIANTS = {
    "lite0": Variant(1.0, 1.0, 224),
    "lite1": Variant(1.0, 1.1, 240),
    "lite2": Variant(1.1, 1.2, 260),
}


class Stage(NamedTuple):
    """A row of the paper's table 1."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000


def round_channels(channels: float) -> int:
    """The nearest multiple of 8 that loses no more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SameConv2d(nn.Conv2d):
    """TensorFlow's "same" padding: at stride 2 and an even size the odd pixel is added at the right and at the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', ⌈H / stride⌉, ⌈W / stride⌉]"""
        sides = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        x = self._conv_forward(F.pad(x, sides) if any(sides) else x, self.weight, self.bias)
        return x


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded as TensorFlow pads."""
    if stride > 1:
        return SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with TensorFlow's settings."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Inverted residual: widen (unless expand is 1), depthwise convolution, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int):
        super().__init__()
        hidden = inputs * expand
        widen = [conv(inputs, hidden), norm(hidden), nn.ReLU6(inplace=True)] if expand > 1 else []
        depthwise = [conv(hidden, hidden, kernel, stride, hidden), norm(hidden), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*widen, *depthwise, conv(hidden, outputs), norm(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H', W']"""
        x = x + self.layers(x) if self.residual else self.layers(x)
        return x


class EfficientNetLite(nn.Module):
    """``features`` for a connector, ``logits`` over the 1,000 ImageNet classes.

    Pixels are expected as ``(rgb in 0..1 - mean) / std``.
    """

    mean = (0.498, 0.498, 0.498)  # (x - 127) / 128 on bytes
    std = (0.502, 0.502, 0.502)

    def __init__(self, variant: str = "lite0"):
        super().__init__()
        width, depth, self.resolution = VARIANTS[variant]
        self.stem = nn.Sequential(conv(3, STEM, 3, 2), norm(STEM), nn.ReLU6(inplace=True))
        blocks: list[nn.Module] = []
        inputs = STEM
        for stage in STAGES:
            ends = stage in (STAGES[0], STAGES[-1])  # the depth of these does not scale
            outputs = round_channels(stage.channels * width)
            for i in range(stage.repeats if ends else math.ceil(stage.repeats * depth)):
                blocks.append(Block(inputs, outputs, stage.kernel, stage.stride if i == 0 else 1, stage.expand))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(conv(inputs, HEAD), norm(HEAD), nn.ReLU6(inplace=True))
        self.classifier = nn.Linear(HEAD, CLASSES)
        self.channels = {"head": HEAD, "stages": inputs}

    def features(self, pixels: Tensor, layer: Literal["head", "stages"] = "head") -> Tensor:
        """The last feature map [B, C, h, w]: after the head (C = 1280) or before it (C = 320, 352 for lite2)."""
        x: Tensor = self.blocks(self.stem(pixels))
        x = self.head(x) if layer == "head" else x
        return x

    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], normalised → ImageNet logits [B, 1000]"""
        logits: Tensor = self.classifier(self.features(pixels).mean((2, 3)))
        return logits

    def load_original(self, path: str | Path) -> None:
        """Load the weights of a published file, which has the layers in the same order under other names."""
        weights = torch.load(path, map_location="cpu", weights_only=True)
        self.load_state_dict(dict(zip(self.state_dict(), weights.values(), strict=True)))

    def fold_norms(self) -> None:
        """Merge each batch norm into the convolution before it: the same function in fewer steps, and no statistics that a training
        loop could overwrite.
        """
        for module in [*self.modules()]:
            if isinstance(module, nn.Sequential):
                for i, (first, second) in enumerate(pairwise([*module])):
                    if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                        module[i] = fuse_conv_bn_eval(first, second)
                        module[i + 1] = nn.Identity()


def load_efficientnet(variant: str = "lite0") -> EfficientNetLite:
    """The packaged tower: frozen, in evaluation mode, norms folded in, channels-last (twice as fast on a CPU)."""
    (package,) = require(f"efficientnet-{variant}")
    (path,) = Path(package.__path__[0]).glob("models/*.pth")
    net = EfficientNetLite(variant)
    net.load_original(path)
    net.eval().requires_grad_(False)
    net.fold_norms()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net
