# SPDX-License-Identifier: Apache-2.0
"""What every extractor of features is, and two for small colour images: pixels and ResNet-56."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from shielded.errors import BadInput


class Extractor(Protocol):
    """Images (N, C, H, W) in [-1, 1] in, features (N, F) out; `name` stands in tables."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """(N, F)."""
        ...


def eight_bit(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8, as the images would be saved; grey ones get three equal channels."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise BadInput(f"Images are (N, 1 or 3, H, W) in [-1, 1], not {tuple(images.shape)}.")
    values = ((images.to(torch.float64) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return values.expand(-1, 3, -1, -1)


class Pixels:
    """The ink of a picture: how far every value is from white, as (N, D)."""

    name = "pixels"

    def __call__(self, images: Tensor) -> Tensor:
        """(1 - x) / 2, flattened."""
        return (1 - images.flatten(1)) / 2


class ResNet56:
    """The last 64 features of a ResNet-56 for 32x32 colour images (He et al. 2016, CIFAR-10).

    `path` is a safetensors file of the published weights; inputs are normalised as ImageNet's.
    """

    name = "resnet56"

    def __init__(self, path: str | Path):
        from safetensors.torch import load_file

        self.net = _Net()
        weights = load_file(path)
        self.net.load_state_dict({k: v for k, v in weights.items() if not k.startswith("linear.")})
        self.net.eval()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 64)."""
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        x = ((images.float() + 1) / 2 - mean) / std
        return torch.cat([self.net(part) for part in x.split(256)])


class _Block(nn.Module):
    """Two convolutions and a shortcut that subsamples and pads channels (option A)."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.extra = stride, outside - inside

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.extra:
            half = self.extra // 2
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return relu(x + y)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._level(16, 16, 1)
        self.layer2 = self._level(16, 32, 2)
        self.layer3 = self._level(32, 64, 2)

    @staticmethod
    def _level(inside: int, outside: int, stride: int) -> nn.Sequential:
        rest = [_Block(outside, outside, 1) for _ in range(8)]
        return nn.Sequential(_Block(inside, outside, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))
