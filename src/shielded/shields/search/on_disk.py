# SPDX-License-Identifier: Apache-2.0
"""Points read straight from the files that hold them.

Lance keeps wide columns as they are, one row after another. To read scattered rows through it
costs ten times more than to read their bytes. So that is done, where a file is found to be laid
out so; where not, or where it is gone, Lance is asked.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shielded.shields.store import Part, ProtectedSet
from shielded.shields.store.engine import DATA

__all__ = ["OnDisk"]

PLACE = 32  # bits of a row address that count within its fragment
AT_ONCE = 256  # reads that the disk is told of together, and files that are open at most


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of a file: how many rows lie before each, and at which byte it starts."""

    path: str
    before: list[int]
    start: list[int]

    def byte(self, row: int, width: int) -> int:
        """Where a row, of `width` bytes, starts."""
        page = bisect_right(self.before, row) - 1
        return self.start[page] + (row - self.before[page]) * width


@contextmanager
def opened(paths: Mapping[int, str]) -> Iterator[dict[int, int]]:
    """Files to read from, each by its number."""
    files: dict[int, int] = {}
    try:
        for name, path in paths.items():
            files[name] = os.open(path, os.O_RDONLY)
        yield files
    finally:
        for file in files.values():
            os.close(file)


class OnDisk:
    """The points of a set, at the version it has, by row addresses."""

    def __init__(self, store: ProtectedSet, parts: Sequence[Part]):
        self.store = store
        self._parts = {int(part.rows[0]) >> PLACE: part for part in parts if len(part.rows)}
        self._pages: dict[int, Pages | None] = {}
        self._width = store.dim * np.dtype(store.dtype).itemsize

    def __call__(self, address: np.ndarray) -> np.ndarray:
        """Points (n, D) as they are stored, in the order asked."""
        found = np.empty((len(address), self.store.dim), self.store.dtype)
        order = np.argsort(address).tolist()
        with suppress(OSError):
            for start in range(0, len(order), AT_ONCE):
                rows = order[start : start + AT_ONCE]
                if not self._read(address[rows].tolist(), rows, found):
                    return self.store.take(address)
            return found
        return self.store.take(address)

    def announce(self, address: np.ndarray) -> None:
        """Let the disk read points in the meantime that may soon be asked for.

        Of fragments that were read before: of the others nothing is known yet.
        """
        found = ((a, self._pages.get(a >> PLACE)) for a in address.tolist())
        known = {a: page for a, page in found if page is not None}
        pages = {a >> PLACE: page for a, page in known.items()}
        with suppress(OSError):  # who asks for them will see
            with opened({fragment: one.path for fragment, one in pages.items()}) as files:
                self._announce(self._reads(pages, files, list(known)))

    def _read(self, address: Sequence[int], rows: Sequence[int], found: np.ndarray) -> bool:
        """Put points into those rows of `found`; False if one cannot be found."""
        pages = {fragment: self._laid_out(fragment) for fragment in {a >> PLACE for a in address}}
        there = {fragment: one for fragment, one in pages.items() if one is not None}
        if len(there) < len(pages):
            return False
        self._fill(there, address, rows, found)
        return True

    def _reads(
        self, pages: Mapping[int, Pages], files: Mapping[int, int], address: Sequence[int]
    ) -> list[tuple[int, int]]:
        """Of each point the open file, and the byte where it starts."""
        return [
            (files[a >> PLACE], pages[a >> PLACE].byte(a & (1 << PLACE) - 1, self._width))
            for a in address
        ]

    def _fill(
        self,
        pages: Mapping[int, Pages],
        address: Sequence[int],
        rows: Sequence[int],
        found: np.ndarray,
    ) -> None:
        width, into = self._width, memoryview(found.data).cast("B")
        with opened({fragment: one.path for fragment, one in pages.items()}) as files:
            reads = self._reads(pages, files, address)
            if len(reads) > 1:  # one by one each waits
                self._announce(reads)
            for row, (file, byte) in zip(rows, reads, strict=True):
                if os.preadv(file, [into[row * width : (row + 1) * width]], byte) != width:
                    raise OSError("a file of the set is too short")

    def _announce(self, reads: Sequence[tuple[int, int]]) -> None:
        """Tell the disk of all reads, so that it does many at once."""
        if not hasattr(os, "posix_fadvise"):
            return
        with suppress(OSError):  # where it cannot be told, it is read all the same
            for file, byte in reads:
                os.posix_fadvise(file, byte, self._width, os.POSIX_FADV_WILLNEED)

    def _laid_out(self, fragment: int) -> Pages | None:
        """Where the points of a fragment are, or None if that cannot be told for sure."""
        if fragment not in self._pages:
            pages, part = None, self._parts.get(fragment)
            if part is not None and hasattr(os, "preadv"):
                pages = self._find(self.store.path / DATA / "data" / part.name)
            if pages is not None and part is not None:
                some = part.rows[np.unique(np.linspace(0, len(part.rows) - 1, 3).astype(int))]
                mine = np.empty((len(some), self.store.dim), self.store.dtype)
                self._fill({fragment: pages}, some.tolist(), range(len(some)), mine)
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
        return Pages(str(path), before.tolist(), [int(buffer.position) for buffer in buffers])
