# SPDX-License-Identifier: Apache-2.0
"""The lines of CC12M's table: a URL, a tab, a caption."""

from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

LIMIT = 2**20  # bytes of a line
HEADER = b"url\tcaption"  # CC12M has none, but many tools want one
WEB = (b"http://", b"https://")
TOO_LONG = "longer than 1 MiB"


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file without their ends; of a longer one than LIMIT its first LIMIT bytes."""
    for line in iter(partial(file.readline, LIMIT), b""):
        if len(line) == LIMIT and not line.endswith(b"\n"):
            while (rest := file.readline(LIMIT)) and not rest.endswith(b"\n"):
                pass
            yield line
        else:
            yield line.rstrip(b"\r\n")


def fault(line: bytes) -> str | None:
    """Why a line is no row of the table, None if it is one.

    >>> fault(b"https://example.com/1.jpg\\ta cat")
    >>> fault(b"a cat\\thttps://example.com/1.jpg")
    'no URL before the tab'
    """
    if len(line) >= LIMIT:
        return TOO_LONG
    url, tab, caption = line.partition(b"\t")
    if not tab:
        return "no tab"
    if not url.startswith(WEB) and not url[:8].lower().startswith(WEB):
        return "no URL before the tab"
    if b"\t" in caption:
        return "more than one tab"
    if not caption.strip():
        return "no caption after the tab"
    try:
        if not line.isascii():
            line.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    return None
