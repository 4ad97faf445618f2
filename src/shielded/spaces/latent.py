# SPDX-License-Identifier: Apache-2.0
"""The sampler's own space, as the paper measures."""

from dataclasses import dataclass

import torch
from torch import Tensor


def exact(x: Tensor) -> Tensor:
    """x in float64, where distances are decided; on the CPU if its device has no float64."""
    x = x.detach()
    return (x.cpu() if x.device.type == "mps" else x).to(torch.float64)


@dataclass(frozen=True, slots=True)
class Latent:
    """L2 distance between latents, exactly as the pipeline returns them."""

    box: None = None

    def measure(self, sample: Tensor) -> Tensor:
        """The latents themselves, in float64."""
        return exact(sample)
