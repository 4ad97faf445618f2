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


def write(root: Path, version: int, sums: Mapping[str, str], draft: Path) -> str:
    """Store the sums of some files as a list, made in `draft`; both relative to the set."""
    text = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items())).encode()
    name = f"{FOLDER}/{version:010d}-{hashlib.sha256(text).hexdigest()[:16]}.sha256"
    part, path = draft / "sums", root / name
    part.write_bytes(text)
    settle(part)
    path.parent.mkdir(exist_ok=True)
    part.replace(path)
    settle(path.parent)
    return name


def read(root: Path, since: int = 0) -> tuple[dict[str, str], list[str]]:
    """The sum of each file from lists after version `since`, and the lists that are damaged."""
    while True:
        sums, damaged = {}, []
        try:
            for name in lists(root, since):
                text = (root / name).read_bytes()
                if hashlib.sha256(text).hexdigest()[:16] in name:
                    lines = (line.partition("  ") for line in text.decode().splitlines())
                    sums |= {file: value for value, _, file in lines}
                else:
                    damaged.append(name)
            return sums, damaged
        except FileNotFoundError:
            continue  # a writer has just joined the lists into one: read that


def lists(root: Path, since: int) -> list[str]:
    """The lists of sums that came with versions after `since`, relative to the set."""
    if not (root / FOLDER).is_dir():
        return []
    names = sorted(name for name in os.listdir(root / FOLDER) if name.endswith(".sha256"))
    return [f"{FOLDER}/{name}" for name in names if int(name.partition("-")[0]) > since]


def settle(path: Path) -> None:
    """Return when a file, or the names in a folder, would survive a loss of power."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle for this
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
