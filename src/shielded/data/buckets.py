# SPDX-License-Identifier: Apache-2.0
"""A table that is larger than memory, taken apart on disk so that equal captions meet.

Each row goes to one of 64 files by the CRC-32 of its caption; each file is then small enough to be
grouped in memory. A run that was stopped goes on from its last checkpoint.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from zlib import crc32

from shielded.data.rows import HEADER, fault, lines
from shielded.errors import BadInput, Damaged

BUCKETS = 64
BLOCK = 2**24  # bytes of the table between two checkpoints
TRIED = 1000  # lines: if none of the first so many is a row, it is a file of another kind
SHOWN = 10  # skipped lines that are named

Tell = Callable[[float, int], None]  # share of the table that is read, rows


@dataclass
class Read:
    """How far a table has been read, which is all that a later run needs to go on."""

    table: list[int]  # bytes and time of the table: another one is read from its start
    offset: int = 0
    lines: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # lines by reason
    first: list[tuple[int, str]] = field(default_factory=list)  # number and reason of a few
    rows: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    sizes: list[int] = field(default_factory=lambda: [0] * BUCKETS)  # bytes

    def skip(self, reason: str) -> None:
        """Count the current line as skipped."""
        self.skipped[reason] += 1
        if len(self.first) < SHOWN:
            self.first.append((self.lines, reason))


def spread(table: Path, folder: Path, tell: Tell = lambda share, rows: None) -> Read:
    """Spread the rows of `table` over the buckets in `folder`, or go on with it.

    Raises BadInput if it is no such table, or if it changes meanwhile.
    """
    _check(table)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        source = stack.enter_context(open(table, "rb"))
        read = _begun(folder, _table(source.fileno()))
        files = [stack.enter_context(open(path, "ab")) for path in paths(folder)]
        source.seek(read.offset)
        parts: list[list[bytes]] = [[] for _ in files]
        gathered = 0
        for line in lines(source):
            read.lines += 1
            if (reason := fault(line)) is None:
                number = crc32(line[line.index(b"\t") + 1 :]) % BUCKETS
                read.rows[number] += 1
                parts[number].append(line + b"\n")
            elif not (read.lines == 1 and line.lower() == HEADER):
                read.skip(reason)
            gathered += len(line)
            if gathered >= BLOCK:
                _save(read, source.tell(), files, parts, folder)
                gathered = 0
                tell(read.offset / read.table[0], sum(read.rows))
        _save(read, source.tell(), files, parts, folder)
        if _table(source.fileno()) != read.table:
            raise BadInput(f"{table} changed while it was read: try again when it is complete.")
    return read


def paths(folder: Path) -> list[Path]:
    """The files of the buckets."""
    return [folder / f"{number:02d}.tsv" for number in range(BUCKETS)]


def groups(path: Path, rows: int, most: int) -> Iterator[tuple[bytes, list[bytes], int]]:
    """Every caption of a bucket of so many rows: its URLs in order, and their number.

    At most `most` + 1 URLs are kept, so that a caption with millions of images needs no memory.
    Raises Damaged if the bucket does not hold as many rows as were written.
    """
    found: dict[bytes, list[bytes]] = {}
    more: Counter[bytes] = Counter()
    with open(path, "rb") as file:
        for line in file:
            rows -= 1
            url, _, caption = line.partition(b"\t")
            urls = found.setdefault(caption, [])
            if len(urls) <= most:
                urls.append(url)
            else:
                more[caption] += 1
    if rows:
        shutil.rmtree(path.parent)
        raise Damaged(
            f"{path.parent} did not read back as it was written and is removed: run the command "
            "again, one at a time."
        )
    for caption, urls in found.items():
        yield caption.rstrip(b"\n"), urls, len(urls) + more[caption]


def _table(handle: int) -> list[int]:
    found = os.fstat(handle)
    return [found.st_size, found.st_mtime_ns]


def _check(table: Path) -> None:
    """Raise BadInput if none of the first lines is a row."""
    with open(table, "rb") as file:
        if all(fault(line) for line in islice(lines(file), TRIED)):
            raise BadInput(
                f"{table} is not CC12M's table: give its .tsv, unpacked, with a URL, a tab and a "
                "caption a line."
            )


def _begun(folder: Path, table: list[int]) -> Read:
    """What an earlier run has read of this table, its buckets as they were then; else a new one."""
    try:
        read = Read(**json.loads((folder / "read.json").read_text()))
        read.skipped = Counter(read.skipped)
        if read.table == table and len(read.sizes) == BUCKETS:
            for path, size in zip(paths(folder), read.sizes, strict=True):
                if path.stat().st_size < size:
                    raise ValueError
                os.truncate(path, size)
            return read
    except (OSError, ValueError, TypeError):
        pass
    (folder / "read.json").unlink(missing_ok=True)
    for path in paths(folder):
        path.write_bytes(b"")
    return Read(table)


def _save(read: Read, offset: int, files: list, parts: list[list[bytes]], folder: Path) -> None:
    """Write what was gathered, and then, whole or not at all, that it is written."""
    for number, (file, part) in enumerate(zip(files, parts, strict=True)):
        file.writelines(part)
        file.flush()
        read.sizes[number] = file.tell()
        part.clear()
    read.offset = offset
    new = folder / "read.json.part"
    new.write_text(json.dumps(vars(read)))
    new.replace(folder / "read.json")
