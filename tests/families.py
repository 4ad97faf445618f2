# SPDX-License-Identifier: Apache-2.0
"""Tiny random instances of real diffusers pipelines, one builder a family, all offline.

    family = FAMILIES["flux"]()
    images = family.run(seed=0)                      # (B, ...) float tensor
    latents = family.run(seed=0, latents=True)       # as the pipeline returns them

Weights come from seed 0, run on the CPU in float32, and mean nothing: what matters is the path
that latents take from the noise through the pipeline's own loop to its output.
"""

from pipelines import flow, pixels, transformer, unet, video
from pipelines.family import FAMILIES, Family

__all__ = ["FAMILIES", "Family", "flow", "pixels", "transformer", "unet", "video"]
