# SPDX-License-Identifier: Apache-2.0
"""Points read straight from the files that hold them.

Lance keeps wide columns as they are, one row after another. To read scattered rows through it
costs ten times more than to read their bytes. So that is done, where a file is found to be laid
out so; where not, or where it is gone, Lance is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shielded.shields.store import Part, ProtectedSet
from shielded.shields.store.engine import DATA

__all__ = ["OnDisk"]

PLACE = np.uint64(32)  # bits of a row address that count within its fragment
ROW = np.uint64(2**32 - 1)  # those bits


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of a file: how many rows lie before each (P,), and at which byte it starts (P,)."""

    path: Path
    before: np.ndarray
    start: np.ndarray

    def bytes(self, at: np.ndarray, width: int) -> list[int]:
        """Where the rows at places `at` (n,), of `width` bytes each, start."""
        row = at.astype(np.int64)
        page = np.searchsorted(self.before, row, "right") - 1
        return (self.start[page] + (row - self.before[page]) * width).tolist()


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file to read from, by its number."""
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


class OnDisk:
    """The points of a set, at the version it has, by row addresses."""

    def __init__(self, store: ProtectedSet, parts: Sequence[Part]):
        self.store = store
        self._parts = {int(part.rows[0] >> PLACE): part for part in parts if len(part.rows)}
        self._pages: dict[int, Pages | None] = {}
        self._width = store.dim * np.dtype(store.dtype).itemsize

    def __call__(self, address: np.ndarray) -> np.ndarray:
        """Points (n, D) as they are stored, in the order asked."""
        order = np.argsort(address)
        which = (address[order] >> PLACE).astype(np.int64)
        groups = np.split(order, np.flatnonzero(np.diff(which)) + 1) if len(order) else []
        found = np.empty((len(address), self.store.dim), self.store.dtype)
        with suppress(OSError):
            asked = []
            for rows in groups:
                pages = self._laid_out(int(address[rows[0]] >> PLACE))
                if pages is None:
                    return self.store.take(address)
                asked.append((pages, pages.bytes(address[rows] & ROW, self._width), rows))
            with suppress(OSError):  # where it cannot be told, it is read all the same
                self._announce(asked)
            for pages, byte, rows in asked:
                self._read(pages, byte, rows, found)
            return found
        return self.store.take(address)

    def _announce(self, asked: Sequence[tuple[Pages, list[int], np.ndarray]]) -> None:
        """Tell the disk of all reads, so that it does many at once: one by one each waits."""
        if not hasattr(os, "posix_fadvise"):
            return
        for pages, byte, _ in asked:
            with opened(pages.path) as file:
                for start in byte:
                    os.posix_fadvise(file, start, self._width, os.POSIX_FADV_WILLNEED)

    def _read(self, pages: Pages, byte: list[int], rows: np.ndarray, found: np.ndarray) -> None:
        """Put the points that start at these bytes of one file into those rows of `found`."""
        width, into = self._width, memoryview(found.data).cast("B")
        with opened(pages.path) as file:
            for row, start in zip((rows * width).tolist(), byte, strict=True):
                if os.preadv(file, [into[row : row + width]], start) != width:
                    raise OSError(f"{pages.path} is too short")

    def _laid_out(self, fragment: int) -> Pages | None:
        """Where the points of a fragment are, or None if that cannot be told for sure."""
        if fragment not in self._pages:
            pages, part = None, self._parts.get(fragment)
            if part is not None and hasattr(os, "preadv"):
                pages = self._find(self.store.path / DATA / "data" / part.name)
            if pages is not None and part is not None:
                some = part.rows[np.unique(np.linspace(0, len(part.rows) - 1, 3).astype(int))]
                mine = np.empty((len(some), self.store.dim), self.store.dtype)
                self._read(pages, pages.bytes(some & ROW, self._width), np.arange(len(some)), mine)
                if mine.tobytes() != np.ascontiguousarray(self.store.take(some)).tobytes():
                    pages = None
            self._pages[fragment] = pages
        return self._pages[fragment]

    def _find(self, path: Path) -> Pages | None:
        """Pages that hold latents and nothing else: as many bytes as all rows have."""
        try:
            from lance.file import LanceFileReader

            about = LanceFileReader(str(path)).metadata()
            column = about.columns[about.schema.names.index("latent")]
            buffers = [buffer for page in column.pages for buffer in page.buffers]
        except (ImportError, AttributeError, ValueError, IndexError, OSError):
            return None
        size = np.array([buffer.size for buffer in buffers], dtype=np.int64)
        if len(buffers) != len(column.pages) or int(size.sum()) != about.num_rows * self._width:
            return None
        if bool((size % self._width).any()):
            return None
        before = np.concatenate([[0], np.cumsum(size // self._width)[:-1]])
        return Pages(path, before, np.array([buffer.position for buffer in buffers]))
