# SPDX-License-Identifier: Apache-2.0
"""One change of a set: made aside, vouched for, then moved in with the manifest as the last step.

Lance writes the next version into SET/draft, which holds little more than the newest manifest.
Before a reader can see any of it the sums of the new files are on disk. A crash before the last
rename leaves the old version, and files that nothing refers to; after it, the new version.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from shielded.errors import Busy, Damaged
from shielded.shields.store import sums
from shielded.shields.store.cache import clear
from shielded.shields.store.engine import DATA, engine, manifest, stored, tracked, versions
from shielded.shields.store.header import FILE

if TYPE_CHECKING:
    import pyarrow as pa
    from lance import FragmentMetadata, LanceOperation

FOLDER = "draft"
PATIENCE = 10.0  # seconds a writer waits for another


class Draft:
    """The next version of a set while it is made."""

    def __init__(self, root: Path, version: int, files: Iterable[str] = ()):
        self.root, self.version, self.folder = root, version, root / FOLDER
        self.discard()
        for name in sums.lists(root, since=version):  # of a writer that was killed
            (root / name).unlink()
        for name in (manifest(version), *files) if version else ():
            copy = self.folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, copy)

    @property
    def uri(self) -> str:
        """Where Lance writes."""
        return str(self.folder / DATA)

    def write(self, rows: "pa.Table | pa.RecordBatchReader", size: int) -> "list[FragmentMetadata]":
        """Write rows into data files of at most `size` rows."""
        return engine().fragment.write_fragments(rows, self.uri, max_rows_per_file=size)

    def commit(self, operation: "LanceOperation.BaseOperation", note: str) -> None:
        """Let Lance write the manifest of the next version, with a note on what changed."""
        engine().LanceDataset.commit(
            self.uri, operation, read_version=self.version, commit_message=note
        )

    def publish(self) -> None:
        """Move the new files in: the sums first, the manifest last."""
        fresh = {}
        for name in files(self.folder):
            if not (self.root / name).exists() and not name.endswith("version_hint.json"):
                sums.settle(self.folder / name)
                fresh[name] = sums.digest(self.folder / name)
        last = manifest(self.version + 1)
        sums.write(self.root, self.version + 1, fresh, self.folder)
        self._move(name for name in fresh if name != last)
        self._move([last])

    def _move(self, names: Iterable[str]) -> None:
        """Move files to their places, and return when they are there for good."""
        folders = set()
        for name in names:
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.folder / name, target)
            folders |= {target.parent, target.parent.parent}
        for folder in folders:
            sums.settle(folder)

    def discard(self) -> None:
        """Remove what is left of it."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the set's lock, which the kernel releases if the process dies; Busy after a while."""
    lock = FileLock(root / "lock", timeout=PATIENCE)
    with stored(root):
        try:
            lock.acquire()
        except Timeout as error:
            raise Busy(
                f"another process is changing {root}: try again when it has finished."
            ) from error
    try:
        yield
    finally:
        lock.release()


def clean(root: Path, keep: int | None) -> None:
    """Erase all but the newest `keep` versions (None: none of them), and every loose file."""
    numbers = versions(root)
    kept = numbers if keep is None else numbers[-keep:]
    wanted = tracked(root, kept[0], kept[-1]) | {FILE}
    known, _ = sums.read(root)
    if not wanted <= known.keys():
        raise Damaged(
            f"{root} has files without a checksum: run `shielded protect verify {root}` first."
        )
    # In this order a crash leaves loose files, and nothing that is not vouched for.
    for number in numbers[: -len(kept)]:
        (root / manifest(number)).unlink()
    (root / FOLDER).mkdir(exist_ok=True)
    wanted.add(sums.write(root, numbers[-1], {k: known[k] for k in wanted}, root / FOLDER))
    gone = [name for name in files(root) if name not in wanted]
    if any(name.startswith(f"{DATA}/data/") for name in gone):
        clear(root)  # sketches of what is erased would still show it
    for name in gone:
        (root / name).unlink(missing_ok=True)
    shutil.rmtree(root / FOLDER, ignore_errors=True)


def files(root: Path) -> list[str]:
    """The files of a set that a version may refer to, relative to its folder, sorted."""
    found = [
        Path(folder, name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root)  # which forgives a folder that is just removed
        for name in names
    ]
    return sorted(name for name in found if name != "lock" and not name.startswith("screen/"))
