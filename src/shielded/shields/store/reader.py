# SPDX-License-Identifier: Apache-2.0
"""One version of a set, read: its parts, its latents, what is known of each image."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shielded.errors import BadInput
from shielded.shields.store.engine import dataset, manifests, sound
from shielded.shields.store.header import Header
from shielded.shields.store.names import Names, state
from shielded.shields.store.rows import refuse
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
        self._data: LanceDataset = _load(path, version)

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

    def has(self, ids: Collection[str]) -> set[str]:
        """Those of the ids that are in the set."""
        return set(self._find(ids))

    def entries(
        self, columns: Sequence[str] = COLUMNS, batch: int = 4096
    ) -> Iterator[dict[str, list[Any]]]:
        """All images in row order, at most `batch` at a time: a list for each column."""
        unknown = [name for name in columns if name not in COLUMNS]
        refuse(unknown, "not among the columns", f"choose from {', '.join(COLUMNS)}")
        with sound(self.path):
            for found in self._scan(self._data.get_fragments(), columns, batch).to_batches():
                entry = found.select(list(columns)).to_pydict()
                if "metadata" in entry:
                    entry["metadata"] = [_parsed(text) for text in entry["metadata"]]
                yield entry

    def parts(self) -> list[Part]:
        """The pieces of this version, in row order."""
        with sound(self.path):
            return [Part(_file(p), self._live(p)) for p in self._data.get_fragments()]

    def read(self, part: Part, batch: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Live rows of a part: addresses (n,) and latents (n, D) in the stored dtype."""
        found = [p for p in self._data.get_fragments() if _file(p) == part.name]
        if not found:
            raise BadInput(f"{part.name} is no part of version {self.version}: call parts() again.")
        with sound(self.path):
            for rows in self._scan(found, ["latent"], batch).to_batches():
                yield rows["_rowaddr"].to_numpy(), self._numbers(rows["latent"])

    def take(self, addresses: Sequence[int] | np.ndarray) -> np.ndarray:
        """Latents (n, D) at row addresses, in the order asked, in the stored dtype."""
        found = [self._numbers(chunk) for chunk in self._at(addresses, ["latent"])["latent"].chunks]
        if len(found) == 1:
            return found[0]
        return np.concatenate([np.empty((0, self.dim), self.dtype), *found])

    def labels(self, addresses: Sequence[int] | np.ndarray) -> list[Entry]:
        """What is known of the images at row addresses, in the order asked."""
        found = self._at(addresses, ["id", "radius", "source", "metadata"]).to_pylist()
        return [Entry(**{**row, "metadata": _parsed(row["metadata"])}) for row in found]

    def _go(self, version: int) -> None:
        """Read another version from now on, and forget what it does not have."""
        self._data = _load(self.path, version, self._data)
        alive = {state(part) for part in self._data.get_fragments()}
        self._names.retain(alive)
        self._rows = {key: rows for key, rows in self._rows.items() if key in alive}

    def _find(self, ids: Collection[str]) -> dict[str, int]:
        with sound(self.path):
            return self._names.find(self._data, ids)

    def _live(self, part: "LanceFragment") -> np.ndarray:
        key = state(part)
        if key not in self._rows:
            if part.deletion_file() is None:
                rows = np.arange(part.physical_rows, dtype=np.uint64)
                rows += np.uint64(part.fragment_id << 32)
            else:
                rows = self._scan([part], []).to_table()["_rowaddr"].to_numpy()
            rows.flags.writeable = False  # it is shared
            self._rows[key] = rows
        return self._rows[key]

    def _at(self, addresses: Sequence[int] | np.ndarray, columns: list[str]) -> Any:
        rows = np.asarray(addresses, dtype=np.uint64).tolist()
        known = {part.fragment_id for part in self._data.get_fragments()}
        lost = any(row >> 32 not in known for row in rows)
        with sound(self.path):
            found = None if lost else self._data._take_rows(rows, columns=columns)
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

    def _numbers(self, column: Any) -> np.ndarray:
        """Latents of an Arrow array as (n, D)."""
        return column.flatten().to_numpy().reshape(-1, self.dim)


def _load(root: Path, version: int | None, like: "LanceDataset | None" = None) -> "LanceDataset":
    """A version of the rows (None: the newest), once everything small has been checked."""
    seen = manifests(root)
    if version is not None and version not in seen:
        raise BadInput(
            f"{root} has no version {version}: it has {', '.join(map(str, sorted(seen)))}."
        )
    data = dataset(root, max(seen, default=1) if version is None else version, like)
    vouch(root, data)
    return data


def _file(part: "LanceFragment") -> str:
    return part.data_files()[0].path


def _parsed(text: str | None) -> dict[str, Any] | None:
    return None if text is None else json.loads(text)
