# SPDX-License-Identifier: Apache-2.0
"""Pictures to look at: from their files, or decoded from their latents."""

import hashlib
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from shielded.errors import BadInput
from shielded.ingest import decode as opened
from shielded.ingest.picture import read_file
from shielded.spaces.decode import decode


def from_file(source: str | None, digest: str | None) -> Image.Image | None:
    """The picture in a file that still has the content hash `digest`, else None."""
    if source is None or digest is None:
        return None
    try:
        data = read_file(source)
        same = hashlib.sha256(data).hexdigest() == digest
        return opened(data)[0] if same else None
    except BadInput:
        return None


def from_latent(pipe: Any, latent: Tensor, size: tuple[int | None, int | None]) -> Any:
    """The picture that a latent (...) decodes to; None where that is not known how."""
    try:
        return _image(decode(pipe, latent[None], *size)[0])
    except BadInput:
        return None


def _image(x: Tensor) -> Image.Image:
    """Pixels (C, H, W) in [-1, 1] as a picture."""
    x = ((x.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    grey = len(x) == 1
    return Image.fromarray(x[0].numpy() if grey else x[:3].permute(1, 2, 0).contiguous().numpy())
