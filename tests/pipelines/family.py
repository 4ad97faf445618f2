# SPDX-License-Identifier: Apache-2.0
"""What a family is, and the register that its builders enter."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import diffusers
import numpy as np
import torch

PROMPT = ["a dog", "two cats"]
SIZE = {"height": 16, "width": 16}


@dataclass(frozen=True)
class Family:
    """One tiny pipeline and the arguments of its call (without generator).

    `images` and `steps` are what a call makes and how many sampling calls it takes at least.
    `latent_type` is the `output_type` that returns the sampler's own latents, None where the
    pipeline has none. `rgb` works on pixels; `blends` mixes the latents with given ones after
    each step.
    """

    name: str
    pipe: Any
    call: dict[str, Any]
    images: int = 2
    steps: int = 3
    latent_type: str | None = "latent"
    output: str = "images"
    rgb: bool = False
    video: bool = False
    blends: bool = False
    modular: bool = False

    def run(self, seed: int = 0, latents: bool = False, **call) -> torch.Tensor:
        """Call the pipeline: its images, or with `latents` what the last step returned."""
        call = self.call | call | {"generator": torch.Generator().manual_seed(seed)}
        if latents and self.latent_type is None:
            raise ValueError(f"{self.name} cannot return its latents")
        kind = self.latent_type if latents else "np"
        if self.modular:
            return as_tensor(self.pipe(**call, output_type=kind, output=self.output))
        return as_tensor(getattr(self.pipe(**call, output_type=kind), self.output))

    def to(self, dtype: torch.dtype) -> "Family":
        """The same family with its models and the tensors of its call in another precision."""
        self.pipe.to(dtype)
        call = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in self.call.items()}
        return replace(self, call=call)


def as_tensor(images: Any) -> torch.Tensor:
    """A pipeline's output, whatever its type, as one tensor with the batch in front."""
    return images if torch.is_tensor(images) else torch.from_numpy(np.asarray(images))


FAMILIES: dict[str, Callable[[], Family]] = {}


def family(build: Callable[[], tuple[Any, dict] | tuple[Any, dict, dict]]):
    """Register a builder of (pipe, call, extras) that makes a ready Family of it."""

    @wraps(build)
    def built() -> Family:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe, call, *extras = build()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        _silence(pipe)
        return Family(build.__name__, pipe, call, **(extras[0] if extras else {}))

    FAMILIES[build.__name__] = built
    return built


def _silence(part: Any) -> None:
    """Turn off the progress bars; a modular pipeline's are on blocks of any depth."""
    if hasattr(part, "set_progress_bar_config"):
        part.set_progress_bar_config(disable=True)
    blocks = getattr(part, "_blocks", part)  # the public property hands out copies
    for block in getattr(blocks, "sub_blocks", {}).values():
        _silence(block)


def sd_noise(name: str = "DDIMScheduler", **config):
    """A scheduler with the noise schedule of Stable Diffusion."""
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return getattr(diffusers, name)(**(schedule | config))


def shifting_flow():
    """Flow matching whose shift depends on the image size, as FLUX and its kin ship it."""
    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
