# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of every file of a set, in the format of `sha256sum` (`sha256sum -c sums/*` in the set).

A list is named after the version it came with and its own hash, so that a change in it shows too.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = "sums"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(root: Path, version: int, sums: Mapping[str, str], draft: Path) -> Path:
    """Store the sums of some files (paths relative to the set); `draft` holds the unfinished."""
    text = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items())).encode()
    path = root / FOLDER / f"{version:010d}-{hashlib.sha256(text).hexdigest()[:16]}.sha256"
    part = draft / path.name
    part.write_bytes(text)
    settle(part)
    path.parent.mkdir(exist_ok=True)
    part.replace(path)
    settle(path.parent)
    return path


def read(root: Path) -> tuple[dict[str, str], list[str]]:
    """The sum of each file, and the lists that are themselves damaged."""
    while True:
        sums, damaged = {}, []
        try:
            for path in sorted((root / FOLDER).glob("*.sha256")):
                text = path.read_bytes()
                if hashlib.sha256(text).hexdigest()[:16] == path.stem.partition("-")[2]:
                    lines = text.decode().splitlines()
                    sums |= {name: value for value, _, name in (ln.partition("  ") for ln in lines)}
                else:
                    damaged.append(f"{FOLDER}/{path.name}")
            return sums, damaged
        except FileNotFoundError:
            continue  # a writer has just joined the lists into one: read that


def unfinished(root: Path, version: int) -> list[Path]:
    """Lists of changes after `version`: their writer was killed before it could finish."""
    return [p for p in (root / FOLDER).glob("*.sha256") if int(p.stem.partition("-")[0]) > version]


def settle(path: Path) -> None:
    """Return when a file, or the names in a folder, would survive a loss of power."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle for this
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
