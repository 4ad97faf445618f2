# SPDX-License-Identifier: Apache-2.0
"""Lance, the format of the rows: its module, its file names, its errors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shielded.errors import Damaged, MissingExtra, NotStored, ShieldedError

if TYPE_CHECKING:
    from lance import LanceDataset

DATA = "latents.lance"
LAST = 2**64 - 1  # a manifest is named after LAST - version, so that the newest comes first


def engine():
    """The module `lance`, or MissingExtra."""
    try:
        import lance
    except ImportError as error:
        raise MissingExtra(
            "a protected set needs Lance: pip install shielded-diffusion[protect]."
        ) from error
    return lance


def manifest(version: int) -> str:
    """The file that makes a version visible, relative to the set's folder."""
    return f"{DATA}/_versions/{LAST - version}.manifest"


def versions(root: Path) -> list[int]:
    """The versions that readers can see, ascending."""
    try:
        names = os.listdir(root / DATA / "_versions")
    except FileNotFoundError:
        return []
    stems = (name.removesuffix(".manifest") for name in names if name.endswith(".manifest"))
    return sorted(LAST - int(stem) for stem in stems if stem.isdecimal())


def dataset(root: Path, version: int, like: "LanceDataset | None" = None) -> "LanceDataset":
    """The rows as they were at `version`; `like` shares its caches."""
    session = None if like is None else like.session()
    with sound(root):
        return engine().dataset(root / DATA, version=version, session=session)


def tracked(root: Path, first: int, last: int) -> set[str]:
    """Every file that versions `first` to `last` refer to, relative to the set's folder."""
    with sound(root):
        data = engine().dataset(root / DATA)
        found = data.tracked_files(min_version=first).read_all().select(["version", "path"])
    return {f"{DATA}/{row['path']}" for row in found.to_pylist() if row["version"] <= last}


@contextmanager
def sound(root: Path) -> Iterator[None]:
    """Turn whatever Lance raises while it reads into Damaged."""
    remedy = (
        f"run `shielded protect verify {root}`, then restore the files it names from a copy, or "
        "build the set again."
    )
    with _translated(Damaged, f"{root} cannot be read", remedy):
        yield


@contextmanager
def stored(root: Path) -> Iterator[None]:
    """Turn whatever fails while a change is written into NotStored."""
    remedy = "see that its disk has room and may be written, then try again."
    with _translated(NotStored, f"{root} could not be changed", remedy):
        yield


@contextmanager
def _translated(kind: type[ShieldedError], what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except ShieldedError:
        raise
    except BaseException as error:
        # Lance raises a PanicException, which is no Exception, where its own checks fail.
        expected = isinstance(error, (OSError, ValueError, RuntimeError))
        if not expected and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        reason = reason.split(", /")[0].rstrip(". ")  # without the places in Lance's source
        raise kind(f"{what} ({reason}): {remedy}") from error
