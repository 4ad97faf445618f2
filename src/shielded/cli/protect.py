# SPDX-License-Identifier: Apache-2.0
"""The pictures of a folder that a run has to keep away from."""

from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from shielded.errors import BadInput


def pictures(folder: Path) -> dict[str, Image.Image]:
    """Every picture of the folder by file name; hidden files and subfolders are ignored.

    Raises BadInput for a missing or empty folder, and for a file that is not a picture: a
    protected image that is passed over in silence would be unprotected.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder: give --protect a folder of images.")
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_dir():
            continue
        found[path.name] = _open(path)
    if not found:
        raise BadInput(f"{folder} holds no images: put the images to protect into it.")
    return found


def protected(pipe: Any, folder: Path, radius: float | None) -> Any:
    """Shields around the pictures of a folder, encoded as the pipeline's scheduler sees them."""
    from shielded.shields import Shields
    from shielded.spaces import encode

    found = pictures(folder)
    return Shields.images(encode(pipe, list(found.values())), radius=radius, ids=list(found))


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadInput(
            f"{path} cannot be read as an image: repair it or take it out of the folder."
        ) from None
