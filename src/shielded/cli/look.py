# SPDX-License-Identifier: Apache-2.0
"""Pictures to look at: from their files, or decoded from their latents."""

import hashlib
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from shielded.errors import BadInput
from shielded.ingest import decode
from shielded.ingest.picture import read_file
from shielded.spaces import Pixels, space_of
from shielded.spaces.formats import denormalised, format_of


def from_file(source: str | None, digest: str | None) -> Image.Image | None:
    """The picture in a file that still has the content hash `digest`, else None."""
    if source is None or digest is None:
        return None
    try:
        data = read_file(source)
        same = hashlib.sha256(data).hexdigest() == digest
        return decode(data)[0] if same else None
    except BadInput:
        return None


@torch.no_grad()
def from_latent(pipe: Any, latent: Tensor, size: tuple[int | None, int | None]) -> Any:
    """The picture that a latent (...) decodes to; None where that is not known how."""
    if isinstance(space_of(pipe), Pixels):
        return _image(latent)
    form, vae = format_of(pipe)
    z = denormalised(form, pipe, vae, latent[None].to(torch.float32), size)
    if z is None:
        return None
    try:
        x = vae.decode(z.to(vae.device, vae.dtype), return_dict=False)[0][0]
    except (RuntimeError, TypeError, ValueError):  # a decoder that asks for more than a latent
        return None
    return _image(x[:, 0] if form.video else x)


def _image(x: Tensor) -> Image.Image:
    """Pixels (C, H, W) in [-1, 1] as a picture."""
    x = ((x.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    grey = len(x) == 1
    return Image.fromarray(x[0].numpy() if grey else x[:3].permute(1, 2, 0).contiguous().numpy())
