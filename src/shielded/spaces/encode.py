# SPDX-License-Identifier: Apache-2.0
"""From pictures to the space that a pipeline's scheduler works in."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shielded.errors import BadInput
from shielded.spaces.pixels import Pixels
from shielded.spaces.space import space_of


@torch.no_grad()
def encode(
    pipe: Any, images: Sequence[Any], height: int | None = None, width: int | None = None
) -> Tensor:
    """PIL images as latents (K, ...), float32, as the pipeline's scheduler sees them.

    Pictures are put on white, resized to (height, width) or the pipeline's default size, and
    encoded at the posterior's mode. Pixels: 2 x - 1. AutoencoderKL: (z - shift) * scaling, and
    2 x 2 patches as tokens for FLUX. Other autoencoders raise BadInput: encode with the model's
    own code and give Shields.images(latents).
    """
    if not images:
        raise BadInput("there are no images to encode.")
    vae: Any = getattr(pipe, "vae", None)
    in_pixels = isinstance(space_of(pipe), Pixels)
    if not in_pixels and type(vae).__name__ != "AutoencoderKL":
        with_ = f" with {type(vae).__name__}" if vae is not None else ""
        raise BadInput(
            f"images cannot be encoded for {type(pipe).__name__}{with_}: encode them with the "
            "model's own code and pass Shields.images(latents)."
        )
    if height is None or width is None:
        default = _size(pipe)
        height, width = height or default[0], width or default[1]
    pixels = _pixels(images, height, width)
    if in_pixels:
        return pixels
    rows = []
    for image in pixels.split(1):  # one at a time: a decoder's memory, not a set's
        z = vae.encode(image.to(vae.device, vae.dtype)).latent_dist.mode().to(torch.float32)
        rows.append(
            (z - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor
        )
    latents = torch.cat(rows)
    if "Flux" in type(pipe).__name__:
        return _pack(latents)
    return latents


def _size(pipe: Any) -> tuple[int, int]:
    """Default (height, width) of a pipeline's images in pixels."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    size = getattr(pipe, "default_sample_size", None) or getattr(
        getattr(network, "config", None), "sample_size", None
    )
    if size is None:
        raise BadInput(f"{type(pipe).__name__} states no default size: give height and width.")
    factor = getattr(pipe, "vae_scale_factor", 1)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return int(height) * factor, int(width) * factor


def _pixels(images: Sequence[Any], height: int, width: int) -> Tensor:
    """(K, 3, height, width) in [-1, 1]; transparent pictures on white."""
    from PIL import Image

    arrays = []
    for image in images:
        rgba = image.convert("RGBA")
        page = Image.new("RGBA", rgba.size, "white")
        page.alpha_composite(rgba)
        picture = page.convert("RGB")
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        arrays.append(np.asarray(picture))
    stacked = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return stacked.to(torch.float32) / 127.5 - 1


def _pack(z: Tensor) -> Tensor:
    """FLUX's tokens: (B, C, H, W) to (B, H/2 W/2, 4C), a permutation of the numbers."""
    b, c, h, w = z.shape
    return z.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)
