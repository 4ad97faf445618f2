# SPDX-License-Identifier: Apache-2.0
"""The random split into validation and test captions, and the files that hold it."""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from hashlib import blake2b, sha256
from pathlib import Path

from shielded.data.soft_labels import Group

VALIDATION = Fraction(554, 5554)  # of the captions; the others are the test split
Groups = Callable[[], Iterator[Group]]  # the captions, sorted, as often as they are needed


def splitter(groups: Iterable[Group], seed: int) -> Callable[[str], str]:
    """A function that tells the split of a caption.

    Validation are the 554 in 5,554 captions (rounded) whose hashes with the seed are the smallest:
    a random choice that needs no order of the captions and is the same on every machine.
    """
    marks = [_mark(group.caption, seed) for group in groups]
    chosen = set(heapq.nsmallest(round(len(marks) * VALIDATION), marks))
    return lambda caption: "validation" if _mark(caption, seed) in chosen else "test"


def captions(groups: Groups, split: Callable[[str], str]) -> Iterator[str]:
    """One line of JSON a caption."""
    for group in groups():
        row = {
            "caption": group.caption,
            "split": split(group.caption),
            "count": len(group.urls),
            "urls": group.urls,
        }
        yield json.dumps(row) + "\n"


def images(groups: Groups, split: Callable[[str], str]) -> Iterator[str]:
    """One line of JSON an image, as img2dataset reads it."""
    for group in groups():
        for url in group.urls:
            row = {"url": url, "caption": group.caption, "split": split(group.caption)}
            yield json.dumps(row) + "\n"


def whole(path: Path, lines: Iterable[str]) -> str:
    """Write a file beside it and rename, so that nobody sees half of it; its SHA-256."""
    part, digest = path.with_name(f".{path.name}.part"), sha256()
    try:
        with open(part, "wb") as file:
            for line in lines:
                data = line.encode()
                digest.update(data)
                file.write(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def _mark(caption: str, seed: int) -> bytes:
    return blake2b(f"{seed}\0{caption}".encode(), digest_size=16).digest()
