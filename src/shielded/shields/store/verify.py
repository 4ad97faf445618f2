# SPDX-License-Identifier: Apache-2.0
"""Whether every file of a set is as it was written."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shielded.errors import BadInput, Damaged
from shielded.shields.store import sums
from shielded.shields.store.draft import files
from shielded.shields.store.engine import DATA, dataset, manifest, tracked, versions
from shielded.shields.store.header import FILE

if TYPE_CHECKING:
    from lance import LanceDataset


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found; paths are relative to the set.

    `damaged` files have other bytes than were written, or no checksum; `missing` ones are gone;
    no version refers to `loose` ones (a killed writer leaves them, `compact` removes them).
    """

    images: int
    files: int
    damaged: list[str]
    missing: list[str]
    loose: list[str]

    @property
    def sound(self) -> bool:
        """Nothing is damaged or missing."""
        return not self.damaged and not self.missing


def verify(path: str | Path) -> Report:
    """Read every file of the set at `path`, which may be too damaged to open, and compare sums."""
    root = Path(path)
    if not (root / DATA).is_dir():
        raise BadInput(f"there is no protected set at {root}: give the folder of one.")
    while True:
        there, seen = set(files(root)), versions(root)
        report = _compare(root, there, seen)
        if set(seen) <= set(versions(root)):
            return report  # else a `compact` has erased some of them meanwhile


def _compare(root: Path, there: set[str], seen: list[int]) -> Report:
    """The report on the versions `seen`, whose sums were there before they could be seen."""
    known, damaged = sums.read(root)
    wanted, images = _wanted(root, known, there, seen)
    missing = sorted(name for name in wanted if not (root / name).exists())
    sought = sorted(wanted.difference(missing))
    damaged += [name for name in sought if not _intact(root / name, known.get(name))]
    loose = [name for name in there - wanted if not _lists(root, name, wanted)]
    return Report(images, len(wanted), sorted(damaged), missing, sorted(loose))


def vouch(root: Path, data: "LanceDataset", before: "LanceDataset | None" = None) -> None:
    """Raise Damaged unless all small files of a version are intact and its data files complete.

    What the version `before` already had is taken to be so.
    """
    known, damaged = sums.read(root, since=before.version if before else 0)
    small, large = _files(data)
    old_small, old_large = _files(before) if before else (set(), {})
    names = small - old_small | {manifest(data.version)} | (set() if before else {FILE})
    damaged += [name for name in sorted(names) if not _intact(root / name, known.get(name))]
    damaged += [
        name
        for name, size in large.items()
        if name not in old_large and not _complete(root / name, size)
    ]
    if damaged:
        raise Damaged(
            f"{root} is damaged ({', '.join(damaged[:3])}): run `shielded protect verify "
            f"{root}`, then restore the files it names from a copy, or build the set again."
        )


def _files(data: "LanceDataset") -> tuple[set[str], dict[str, int | None]]:
    """Deletion files of a version, and its data files with their sizes."""
    parts = data.get_fragments()
    small = {f"{DATA}/{part.deletion_file()}" for part in parts if part.deletion_file()}
    large = [file for part in parts for file in part.data_files()]
    return small, {f"{DATA}/data/{file.path}": file.file_size_bytes for file in large}


def _wanted(
    root: Path, known: dict[str, str], there: set[str], seen: list[int]
) -> tuple[set[str], int]:
    """The files that some version needs, and the images of the newest."""
    names = {manifest(n) for n in range(min(seen, default=1), max(seen, default=1) + 1)}
    if seen and all(_intact(root / name, known.get(name)) for name in map(manifest, seen)):
        try:
            needed = tracked(root, seen[0], seen[-1])
            return needed | names | {FILE}, dataset(root, seen[-1]).count_rows()
        except Damaged:
            pass
    # What the versions need cannot be known: then everything that has a sum.
    return {FILE, *names, *(there & known.keys())}, 0


def _complete(path: Path, size: int | None) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _intact(path: Path, value: str | None) -> bool:
    try:
        return sums.digest(path) == value
    except FileNotFoundError:
        return False


def _lists(root: Path, name: str, wanted: set[str]) -> bool:
    """Whether a file holds sums of files that are needed, or did before it was damaged."""
    try:
        text = (root / name).read_bytes() if name.startswith(f"{sums.FOLDER}/") else b""
    except FileNotFoundError:
        return False
    lines = text.decode(errors="replace").splitlines()
    return any(line.partition("  ")[2] in wanted for line in lines)
