# SPDX-License-Identifier: Apache-2.0
"""Guidance for samplers that take a denoiser function (EDM, EDM2, k-diffusion)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shielded.errors import BadInput
from shielded.guidance import Step, expand, moved

if TYPE_CHECKING:
    from shielded.guidance import Run
    from shielded.trace import Certificate


class Denoiser:
    """`fn(x, sigma, ...) -> x0` with the run's guidance on every call, second-order ones too."""

    def __init__(self, fn: Callable[..., Tensor], run: Run):
        self.fn, self.run = fn, run
        run.begin()

    def __call__(self, x: Tensor, sigma: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Guided x0 (B, ...) at x = x0 + sigma eps; sigma is a number, () or one value an image."""
        levels = torch.as_tensor(sigma).detach().flatten()
        if bool((levels != levels[0]).any()):
            raise BadInput(
                "the images of one call have different sigma: call the denoiser once for each."
            )
        level = float(levels[0])
        x0 = self.fn(x, sigma, *args, **kwargs)
        groups = expand(self.run.groups, len(x0))
        step = Step(x, x0, 1.0, level, groups, level, self.run.space.box)
        shift = self.run.shift(step)
        return x0 if shift is None else moved(x0, shift.delta, shift.rows)

    def finish(self, images: Tensor) -> Tensor:
        """Land, certify and remember what the sampler returned (B, ...); a new run may follow."""
        images = self.run.finish(images)
        self.run.begin()
        return images

    @property
    def certificates(self) -> list[Certificate]:
        """The certificates of all finished images."""
        return self.run.certificates
