# SPDX-License-Identifier: Apache-2.0
"""One version of a set, read: its parts, its latents, what is known of each image."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shielded.errors import BadInput, Damaged
from shielded.shields.store.engine import dataset, sound, versions
from shielded.shields.store.header import Header
from shielded.shields.store.names import Names
from shielded.shields.store.rows import refuse, several
from shielded.shields.store.verify import vouch

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment

COLUMNS = ("id", "radius", "source", "sha256", "added", "metadata")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """An immutable piece of a set: its name for ever, and its live rows' addresses, ascending."""

    name: str
    rows: np.ndarray  # uint64


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one image besides its latent."""

    id: str
    radius: float | None
    source: str | None
    metadata: dict[str, Any] | None


class Reader:
    """Reads the version it was loaded at, whatever others do to the set meanwhile."""

    def __init__(self, path: Path, header: Header, version: int | None):
        self.path, self._header = path, header
        self._names = Names()
        self._rows: dict[str, np.ndarray] = {}
        self._use(load(path, version))

    @property
    def version(self) -> int:
        """The version that this object reads."""
        return self._data.version

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent."""
        return self._header.shape

    @property
    def dim(self) -> int:
        """D, the numbers in one latent."""
        return self._header.dim

    @property
    def dtype(self) -> str:
        """How latents are stored: float16 or float32."""
        return self._header.dtype

    @property
    def radius(self) -> float | None:
        """Of images that have none of their own."""
        return self._header.radius

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What made the latents."""
        return self._header.fingerprint

    def __len__(self) -> int:
        return self._data.count_rows()

    def has(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that are in the set."""
        return set(self._find(several(ids)))

    def entries(
        self, columns: Sequence[str] = COLUMNS, batch: int = 4096
    ) -> Iterator[dict[str, list[Any]]]:
        """All images in row order, at most `batch` at a time: a list for each column."""
        unknown = [name for name in columns if name not in COLUMNS]
        refuse(unknown, "not among the columns", f"choose from {', '.join(COLUMNS)}")
        with self._reading():
            for found in self._scan(list(self._pieces.values()), columns, batch).to_batches():
                entry = found.select(list(columns)).to_pydict()
                if "metadata" in entry:
                    entry["metadata"] = [_parsed(text) for text in entry["metadata"]]
                yield entry

    def parts(self) -> list[Part]:
        """The pieces of this version, in row order."""
        with self._reading():
            return [Part(_file(p), self._live(key)) for key, p in self._pieces.items()]

    def read(self, part: Part, batch: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Live rows of a part: addresses (n,) and latents (n, D) in the stored dtype."""
        found = [p for p in self._pieces.values() if _file(p) == part.name]
        if not found:
            raise BadInput(f"{part.name} is no part of version {self.version}: call parts() again.")
        with self._reading():
            for rows in self._scan(found, ["latent"], batch).to_batches():
                yield rows["_rowaddr"].to_numpy(), self._flat(rows["latent"])

    def blocks(self, batch: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All live rows in order: addresses (n,) and latents (n, D) in the stored dtype."""
        return (block for part in self.parts() for block in self.read(part, batch))

    def radii(self, part: Part) -> np.ndarray:
        """Each live row's own radius (n,), NaN where it has none."""
        found = [p for p in self._pieces.values() if _file(p) == part.name]
        with self._reading():
            own = self._scan(found, ["radius"]).to_table()["radius"]
        return own.to_numpy().astype(np.float64)

    def take(self, addresses: Sequence[int] | np.ndarray) -> np.ndarray:
        """Latents (n, D) at row addresses, in the order asked, in the stored dtype."""
        found = [self._flat(chunk) for chunk in self._at(addresses, ["latent"])["latent"].chunks]
        if len(found) == 1:
            return found[0]
        return np.concatenate([np.empty((0, self.dim), self.dtype), *found])

    def labels(self, addresses: Sequence[int] | np.ndarray) -> list[Entry]:
        """What is known of the images at row addresses, in the order asked."""
        found = self._at(addresses, ["id", "radius", "source", "metadata"]).to_pylist()
        return [Entry(**{**row, "metadata": _parsed(row["metadata"])}) for row in found]

    def _use(self, data: "LanceDataset") -> None:
        """Read this version from now on, and forget what it does not have."""
        self._data = data
        # A fragment's file never changes, its deletions may: together they name its live rows.
        self._pieces = {f"{_file(p)}:{p.deletion_file()}": p for p in data.get_fragments()}
        self._sizes = {p.fragment_id: p.physical_rows for p in self._pieces.values()}
        self._names.retain(self._pieces)
        self._rows = {key: rows for key, rows in self._rows.items() if key in self._pieces}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what Lance raises into one sentence."""
        try:
            with sound(self.path):
                yield
        except Damaged as error:
            if self.version in versions(self.path):
                raise
            raise BadInput(
                f"version {self.version} of {self.path} was erased meanwhile: refresh, or open "
                "the set again."
            ) from error

    def _find(self, ids: Collection[str]) -> dict[str, int]:
        with self._reading():
            return self._names.find(self._data, self._pieces, ids)

    def _live(self, key: str) -> np.ndarray:
        """Row addresses of the live rows of a piece."""
        if key not in self._rows:
            piece = self._pieces[key]
            if piece.deletion_file() is None:
                rows = np.arange(piece.physical_rows, dtype=np.uint64)
                rows += np.uint64(piece.fragment_id << 32)
            else:
                rows = self._scan([piece], []).to_table()["_rowaddr"].to_numpy()
            rows.flags.writeable = False  # it is shared
            self._rows[key] = rows
        return self._rows[key]

    def _at(self, addresses: Sequence[int] | np.ndarray, columns: list[str]) -> Any:
        rows = np.asarray(addresses, dtype=np.uint64).tolist()
        found = None
        if all(row & 0xFFFFFFFF < self._sizes.get(row >> 32, 0) for row in rows):
            with self._reading():
                found = self._data._take_rows(rows, columns=columns)
        if found is None or found.num_rows != len(rows):
            raise BadInput(
                f"a row address is not in version {self.version} of {self.path}: call parts() "
                "again after a change."
            )
        return found

    def _scan(self, parts: Sequence[Any], columns: Sequence[str] | None, batch: int = 4096) -> Any:
        """Live rows in order, with few batches in memory; all columns, or some and the address."""
        return self._data.scanner(
            columns=None if columns is None else list(columns),
            fragments=list(parts),
            batch_size=batch,
            batch_readahead=2,
            with_row_address=columns is not None,
        )

    def _flat(self, column: Any) -> np.ndarray:
        """Latents of an Arrow array as (n, D)."""
        return column.flatten().to_numpy().reshape(-1, self.dim)


def load(root: Path, version: int | None, like: "LanceDataset | None" = None) -> "LanceDataset":
    """A version of the rows (None: the newest), once everything small has been checked.

    What `like` has is not checked again, and its caches are shared.
    """
    while True:
        seen = versions(root)
        if version is not None and version not in seen:
            raise BadInput(f"{root} has no version {version}: it has {', '.join(map(str, seen))}.")
        number = max(seen, default=1) if version is None else version
        try:
            data = dataset(root, number, like)
            vouch(root, data, before=like)
            return data
        except Damaged:
            if number in versions(root) or not seen:
                raise  # else a `compact` has erased this version meanwhile


def _file(part: "LanceFragment") -> str:
    return part.data_files()[0].path


def _parsed(text: str | None) -> dict[str, Any] | None:
    return None if text is None else json.loads(text)
