# SPDX-License-Identifier: Apache-2.0
"""Which row has which id: hashes in memory, the ids themselves on disk."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment


class Names:
    """Finds rows by id, exactly, in 16 bytes of memory an image."""

    def __init__(self):
        self._tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def find(
        self, data: "LanceDataset", pieces: Mapping[str, "LanceFragment"], ids: Collection[str]
    ) -> dict[str, int]:
        """The row address of each of the ids that is in one of the pieces (by their state)."""
        wanted = _hashes(ids)
        rows = np.concatenate(
            [
                np.empty(0, np.uint64),
                *(self._maybe(data, key, piece, wanted) for key, piece in pieces.items()),
            ]
        ).tolist()
        if not rows:
            return {}
        names = data._take_rows(rows, columns=["id"])["id"].to_pylist()
        asked = set(ids)
        return {name: row for name, row in zip(names, rows, strict=True) if name in asked}

    def _maybe(
        self, data: "LanceDataset", key: str, piece: "LanceFragment", wanted: np.ndarray
    ) -> np.ndarray:
        """Rows of one fragment whose id has a wanted hash."""
        if key not in self._tables:
            self._tables[key] = _table(data, piece)
        hashes, rows = self._tables[key]
        first = np.searchsorted(hashes, wanted, "left")
        last = np.searchsorted(hashes, wanted, "right")
        hits = [np.arange(first[k], last[k]) for k in (first < last).nonzero()[0]]
        return rows[np.concatenate(hits)] if hits else rows[:0]

    def retain(self, alive: Collection[str]) -> None:
        """Drop the fragments that are not alive, named by their state."""
        self._tables = {key: table for key, table in self._tables.items() if key in alive}


def _table(data: "LanceDataset", piece: "LanceFragment") -> tuple[np.ndarray, np.ndarray]:
    """Sorted hashes of the ids of a fragment's live rows, and their row addresses."""
    found = data.scanner(columns=["id"], with_row_address=True, fragments=[piece]).to_table()
    hashes = _hashes(found["id"].to_pylist())
    order = np.argsort(hashes, kind="stable")
    return hashes[order], found["_rowaddr"].to_numpy()[order]


def _hashes(ids: Collection[str]) -> np.ndarray:
    return np.fromiter(map(hash, ids), np.int64, len(ids))
