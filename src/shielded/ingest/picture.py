# SPDX-License-Identifier: Apache-2.0
"""What a source yields: a picture, a picture that cannot be had, or a file that is no picture."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shielded.errors import BadInput

LIMIT_PIXELS = 100_000_000  # of one picture: 400 MB while it is decoded
LIMIT_BYTES = 2**29  # of one picture's file

# Formats that Pillow decodes by itself; others may call programs or have no signature.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
# Names that promise a picture, also in formats that cannot be read here: those are told.
NAMES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .jp2"
    " .j2k .jpx .avif .ico .heic .heif .jxl .svg .psd .tga .dds .eps .exr .hdr .dng .cr2 .cr3 .nef"
    " .arw .raf .orf .rw2 .pcx .xcf .qoi".split()
)
HEAD = 16  # bytes that tell a picture without a picture's name


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: a stable id, where it comes from, its file's bytes, its latent if it has one."""

    id: str
    source: str | None
    read: Callable[[], bytes]
    latent: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that should be a picture and could not be read: it is not protected."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Aside:
    """A file that is no picture by name and content: `kind` is its suffix, "hidden" or "link"."""

    kind: str


Item = Picture | Skipped | Aside


def decode(data: bytes, limit: int = LIMIT_PIXELS) -> tuple[Image.Image, bool]:
    """The picture upright in RGBA, and whether it is the first of several frames.

    Raises BadInput with a short reason for bytes that are no picture, are damaged or hold more
    than `limit` pixels; nothing is decoded before the size is known.
    """
    from io import BytesIO

    with _limited(limit):
        try:
            with Image.open(BytesIO(data), formats=_formats()) as image:
                several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
                return _upright(_eight_bit(image)).convert("RGBA"), several
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise BadInput(f"more than {limit:,} pixels") from None
        except UnidentifiedImageError:
            raise BadInput("not a picture that can be read") from None
        except BadInput:
            raise
        except Exception as error:  # parsers of damaged bytes raise whatever they stumble over
            raise BadInput(f"damaged ({_brief(error)})") from None


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _limited(limit: int) -> Iterator[None]:
    """Pillow's own limit, which warns at the limit and raises at its double: raise at once."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled down: Pillow alone would cut everything above 255 to white."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadInput("its pixels are neither 8-bit nor 16-bit")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as a viewer shows it; damaged EXIF data turn nothing."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:100].rstrip(". ")


def read_file(path: str) -> bytes:
    """The bytes of a file; BadInput for one that is too large or cannot be read."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > LIMIT_BYTES:
                raise BadInput(TOO_LARGE)
            return file.read(LIMIT_BYTES)
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror or error})") from None


TOO_LARGE = f"its file is larger than {LIMIT_BYTES >> 20} MiB"


def promises_picture(name: str, head: bytes) -> bool:
    """Whether a file is a picture by its name, or by its first HEAD bytes."""
    if suffix(name) in NAMES:
        return True
    if head.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")):
        return True
    return head[8:12] == b"WEBP" or head[4:8] in (b"jP  ", b"ftyp")


def suffix(name: str) -> str:
    """The suffix of a file's name in small letters."""
    return PurePosixPath(name).suffix.lower()


def clean(name: str) -> str:
    """A name as valid text: bytes that are no UTF-8 are written as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
