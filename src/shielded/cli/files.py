# SPDX-License-Identifier: Apache-2.0
"""Output files: whole or not at all."""

import io
import os
import re
from pathlib import Path

from PIL import Image

from shielded.errors import BadInput

OURS = re.compile(r"\d{3,}-seed-?\d+\.png")


def write(path: Path, content: bytes) -> None:
    """Write to a file beside it and rename, so that a reader never sees half a file."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def image_name(index: int, seed: int) -> str:
    """File name of an image: its place in the run and its seed."""
    return f"{index:03d}-seed{seed}.png"


def writable(out: Path, name: str, folders: tuple[str, ...] = ()) -> None:
    """Make the output folder and those in it, and see that a file `name` can be written there.

    That of an earlier run is removed: it would tell that this one is finished.
    """
    try:
        for folder in ("", *folders):
            (out / folder).mkdir(parents=True, exist_ok=True)
        write(out / name, b"{}\n")
        (out / name).unlink()
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"{out} cannot be written ({reason}): choose another --out.") from error


def clear(out: Path) -> None:
    """Remove the images of earlier runs: only files named as `image_name` names them."""
    for folder in ("plain", "shielded"):
        for old in (out / folder).glob("*.png"):
            if OURS.fullmatch(old.name):
                old.unlink()


def default_out(prompt: str, seed: int) -> Path:
    """A folder named after the prompt, for a run without --out."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].rstrip("-")
    return Path("out") / f"{words or 'prompt'}-seed{seed}"
