# SPDX-License-Identifier: Apache-2.0
"""RGB space: what counts is the 8-bit image that the user gets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shielded.spaces.latent import exact


@dataclass(frozen=True, slots=True)
class Pixels:
    """L2 distance between images in [-1, 1] after the clamp and the rounding to 8 bits."""

    box: tuple[float, float] = (-1.0, 1.0)

    def measure(self, sample: Tensor) -> Tensor:
        """The image in float64: clamp((x + 1) / 2) rounded to 255 levels, back in [-1, 1]."""
        # The first line is what diffusers does, in the sample's own precision, before it rounds.
        image = (sample.detach() / 2 + 0.5).clamp(0, 1)
        return exact((image.to(torch.float32) * 255).round()) / 127.5 - 1
