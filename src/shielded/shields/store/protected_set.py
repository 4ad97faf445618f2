# SPDX-License-Identifier: Apache-2.0
"""The set of protected images: create, open, add, remove, compact."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from shielded.errors import BadInput
from shielded.shields.store import cache, rows
from shielded.shields.store.draft import Draft, clean, locked
from shielded.shields.store.engine import DATA, engine, stored, versions
from shielded.shields.store.header import Header
from shielded.shields.store.reader import Reader, load
from shielded.shields.store.verify import Report, verify

if TYPE_CHECKING:
    from shielded.shields.search.near import Hit, Near

PART_BYTES = 1 << 30  # of latents in one file


@dataclass(frozen=True, slots=True)
class Version:
    """One state of a set."""

    number: int
    time: datetime
    images: int
    note: str


class ProtectedSet(Reader):
    """Images to keep away from, on disk, in versions: make one with `create` or `open`.

    It stays at its version, whatever other processes do, until it changes the set itself or is
    refreshed. One writer at a time: another waits for it.
    """

    def __init__(self, path: Path, header: Header, version: int | None = None):
        super().__init__(path, header, version)
        self._pinned = version is not None

    @classmethod
    def create(
        cls,
        path: str | Path,
        shape: Sequence[int],
        fingerprint: Mapping[str, Any] | None = None,
        dtype: str = "float16",
        radius: float | None = None,
    ) -> "ProtectedSet":
        """Make an empty set for latents of one shape; the folder must be new or empty."""
        root = Path(path)
        header = Header(tuple(shape), dtype, radius, dict(fingerprint or {}))
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise BadInput(f"{root} is not empty: choose a new folder, or open the set in it.")
        aside = root.absolute().with_name(f".{root.name}.{os.getpid()}")
        lance = engine()
        with stored(root):
            try:
                shutil.rmtree(aside, ignore_errors=True)
                draft = Draft(aside, 0)
                draft.folder.mkdir(parents=True)
                header.write(draft.folder)
                empty = rows.schema(header).empty_table()
                lance.write_dataset(empty, draft.uri, commit_message="created")
                draft.publish()
                draft.discard()
                if root.exists():
                    root.rmdir()
                aside.rename(root)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return cls.open(root)

    @classmethod
    def open(cls, path: str | Path, version: int | None = None) -> "ProtectedSet":
        """The newest version of a set, or a given one, which is then read-only."""
        return cls(Path(path), Header.read(Path(path)), version)

    def __repr__(self) -> str:
        return f"ProtectedSet({str(self.path)!r}, version={self.version}, images={len(self)})"

    def versions(self) -> list[Version]:
        """Every version that can still be opened, oldest first."""
        found = []
        with self._reading():
            for v in self._data.versions():
                change = self._data.read_transaction(v["version"])
                note = change.transaction_properties if change else None
                found.append(
                    Version(
                        v["version"],
                        v["timestamp"].astimezone(UTC),  # type: ignore[union-attr]
                        int(v["metadata"]["total_rows"]),
                        (note or {}).get("__lance_commit_message", ""),
                    )
                )
        return found

    def refresh(self) -> bool:
        """Go to the newest version, unless opened at one; True if this was another."""
        newest = max(versions(self.path), default=0)
        if self._pinned or newest == self.version:
            return False
        # An older one means that the folder was restored from a copy: trust nothing seen before.
        self._use(load(self.path, None, self._data if newest > self.version else None))
        return True

    def add(
        self,
        latents: Tensor | np.ndarray,
        ids: Sequence[str] | None = None,
        sources: Sequence[str | None] | None = None,
        sha256: Sequence[str | None] | None = None,
        metadata: Sequence[dict[str, Any] | None] | None = None,
        radii: Sequence[float | None] | None = None,
    ) -> int:
        """Add latents (K, ...) as one new version; ids default to hashes of the latents."""
        lance = engine()
        new = rows.table(self._header, latents, ids, sources, sha256, metadata, radii)
        if not new.num_rows:
            return 0
        names = new["id"].to_pylist()
        with self._change():
            there = self.has(names)
            known = [name for name in names if name in there]
            rows.refuse(known, "already in the set", "leave them out, or remove them first")
            with self._draft() as draft:
                parts = draft.write(new, self._part_rows)
                draft.commit(lance.LanceOperation.Append(parts), f"added {len(names)}")
        return len(names)

    def remove(self, ids: Iterable[str]) -> int:
        """Take images out, as one new version; earlier versions have them until `compact`."""
        names = rows.several(ids)
        if not names:
            return 0
        with self._change():
            found = self._find(names)
            unknown = [name for name in names if name not in found]
            rows.refuse(unknown, "not in the set", "see `shielded protect list` for its ids")
            self._drop(np.array(sorted(found.values()), np.uint64))
        return len(names)

    def compact(self, keep: int | None = None) -> None:
        """Merge small parts and drop removed rows; `keep` erases all but that many versions.

        Without it earlier versions, and the images removed since, stay on disk. A reader must not
        lag behind the versions kept: a service that refreshes between generations needs two.
        """
        if keep is not None and keep < 1:
            raise BadInput(f"keep is {keep}: keep at least one version.")
        from lance.optimize import Compaction

        options: Any = {
            "target_rows_per_fragment": self._part_rows,
            "materialize_deletions_threshold": 0.0,
        }
        with self._change():
            with self._reading():
                tasks = Compaction.plan(self._data, options).tasks
            if tasks:
                self._merge([task.fragments for task in tasks])
            with stored(self.path):
                clean(self.path, keep)

    def verify(self) -> Report:
        """Read every file of every version and compare its checksum."""
        return verify(self.path)

    def near(self, x0: Tensor | np.ndarray, radius: float | None = None) -> "list[Hit]":
        """All images at most `radius` from any of x0 (B, ...) or (B, D), exactly, nearest first.

        None: each image's own radius, or the set's. The search is kept until the version changes.
        """
        from shielded.shields.search.near import Near

        if self._near is None:
            self._near = Near(self)
        return self._near(x0, radius)

    def keep(self, name: str, tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> bool:
        """Keep derived tensors beside the set, as a cache; False if they cannot be written."""
        return cache.keep(self.path, name, tensors, note)

    def kept(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """What `keep` stored; None if it is missing or not as it was written."""
        return cache.kept(self.path, name)

    def _use(self, data: Any) -> None:
        self._near: Near | None = None
        super()._use(data)

    @property
    def _part_rows(self) -> int:
        return max(1, PART_BYTES // (self.dim * np.dtype(self.dtype).itemsize))

    def _drop(self, addresses: np.ndarray) -> None:
        """Make the version without the rows at these addresses."""
        lance = engine()
        part = (addresses >> np.uint64(32)).astype(int)
        offset = (addresses & np.uint64(0xFFFFFFFF)).astype(int)
        touched = np.unique(part).tolist()
        before = [self._fragment(n).deletion_file() for n in touched]
        with self._draft(f"{DATA}/{file}" for file in before if file) as draft:
            data = lance.dataset(draft.uri)
            after = [data.get_fragment(n).delete_rows(offset[part == n]) for n in touched]  # type: ignore[union-attr]
            changed = [left for left in after if left is not None]
            empty = [n for n, left in zip(touched, after, strict=True) if left is None]
            operation = lance.LanceOperation.Delete(changed, empty, "by id")
            draft.commit(operation, f"removed {len(addresses)}")

    def _merge(self, groups: Sequence[Sequence[Any]]) -> None:
        """Make the version in which each group of parts is as few as possible."""
        operation, merged = engine().LanceOperation, []
        with self._draft() as draft:
            for group in groups:
                old = [self._fragment(part.id) for part in group]
                live = self._scan(old, None, batch=1024).to_reader()
                new = draft.write(live, self._part_rows)
                merged.append(operation.RewriteGroup(group, new))
            draft.commit(operation.Rewrite(merged, []), "compacted")

    def _fragment(self, number: int) -> Any:
        return self._data.get_fragment(number)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Be the only writer, at the newest version, and end at the version that was made."""
        if self._pinned:
            raise BadInput(
                f"{self.path} was opened at version {self.version}, which cannot change: open it "
                "without a version."
            )
        with locked(self.path):
            self.refresh()
            yield
            self.refresh()

    @contextmanager
    def _draft(self, deletions: Iterable[str] = ()) -> Iterator[Draft]:
        """The next version, which is published unless the block fails."""
        with stored(self.path):
            draft = Draft(self.path, self.version, deletions)
            try:
                yield draft
                draft.publish()
            finally:
                draft.discard()
