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


def tracked(root: Path, since: int = 0) -> set[str]:
    """Every file that a version from `since` on refers to, relative to the set's folder."""
    with sound(root):
        data = engine().dataset(root / DATA)
        paths = data.tracked_files(min_version=since).read_all()["path"].to_pylist()
    return {f"{DATA}/{path}" for path in paths}


@contextmanager
def sound(root: Path) -> Iterator[None]:
    """Turn whatever Lance raises while it reads into Damaged."""
    with _translated(
        Damaged,
        f"{root} cannot be read ({{}}): run `shielded protect verify {root}`, then restore the "
        "files it names from a copy, or build the set again.",
    ):
        yield


@contextmanager
def stored(root: Path) -> Iterator[None]:
    """Turn whatever fails while a change is written into NotStored."""
    with _translated(
        NotStored,
        f"{root} could not be changed ({{}}): see that its disk has room and may be written, "
        "then try again.",
    ):
        yield


@contextmanager
def _translated(kind: type[ShieldedError], sentence: str) -> Iterator[None]:
    try:
        yield
    except ShieldedError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise kind(sentence.format(_reason(error))) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a failed assertion inside Lance
            raise
        raise kind(sentence.format(_reason(error))) from error


def _reason(error: BaseException) -> str:
    """The first line of an error, without the places in Lance's source that raised it."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(", /")[0].rstrip(". ")
