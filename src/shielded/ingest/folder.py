# SPDX-License-Identifier: Apache-2.0
"""The pictures of a folder and its subfolders, sorted by name."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shielded.ingest.picture import (
    HEAD,
    Aside,
    Item,
    Skipped,
    clean,
    promises_picture,
    suffix,
)
from shielded.ingest.single import Single

if TYPE_CHECKING:
    from shielded.ingest.source import Piece


class Folder:
    """Every picture below a folder, in archives and tables too; the id is the relative path.

    Hidden files are left aside. A symbolic link may lead to a file of the folder, not out of it.
    """

    def __init__(self, path: Path):
        self.root = os.path.realpath(path)
        self.share = 0.0  # of its files already passed

    def __iter__(self) -> Iterator[Item]:
        for piece in self.pieces():
            passed = self.share
            for item in (piece,) if isinstance(piece, (Skipped, Aside)) else piece:
                yield item
                inner = 1.0 if isinstance(piece, (Skipped, Aside)) else piece.share
                self.share = min(passed + inner / self._total, 1.0)
        self.share = 1.0

    def pieces(self) -> "Iterator[Piece]":
        """Its files in the same order, none of them read, and what cannot be had."""
        self.share, self._total = 0.0, sum(len(files) for _, _, files in os.walk(self.root)) or 1
        folders, passed = [self.root], 0
        while folders:
            folder = folders.pop()
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                yield Skipped(self._id(folder), f"cannot be read ({error.strerror or error})")
                continue
            inner = [entry.path for entry in entries if _is_folder(entry)]
            folders += reversed(inner)
            for entry in entries:
                if not _is_folder(entry):
                    yield self._file(entry)
                    passed += 1
                    self.share = min(passed / self._total, 1.0)

    def _file(self, entry: os.DirEntry[str]) -> "Piece":
        if entry.name.startswith("."):
            return Aside("hidden")
        refused = self._link(entry) if entry.is_symlink() else None
        if refused is not None:
            return refused
        if not entry.is_file():
            return Skipped(self._id(entry.path), "not a regular file")
        path = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
        return _content(path, self._id(entry.path))

    def _link(self, entry: os.DirEntry[str]) -> Skipped | Aside | None:
        """What keeps a symbolic link from being read as the file that it leads to, if anything."""
        target = os.path.realpath(entry.path)
        if not within(target, self.root):
            return Skipped(self._id(entry.path), "a symbolic link that leaves the folder")
        if not os.path.exists(target):
            return Skipped(self._id(entry.path), "a symbolic link that leads nowhere")
        if not os.path.isdir(target):
            return None
        parts = os.path.relpath(target, self.root).split(os.sep)
        if any(part.startswith(".") for part in parts if part != "."):
            return Skipped(self._id(entry.path), "a symbolic link to a hidden folder")
        return Aside("link")  # the folder that it leads to is read under its own name

    def _id(self, path: str) -> str:
        return clean(path[len(self.root) :].replace(os.sep, "/").lstrip("/") or ".")


def _content(path: str, name: str) -> "Piece":
    """A file by its suffix or its first bytes: many pictures, one, or none."""
    from shielded.ingest.source import container

    inside = container(path, name)
    if inside is not None:
        return inside
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        return Skipped(name, f"cannot be read ({error.strerror or error})")
    if promises_picture(name, head):
        return Single(path, name)
    return Aside(suffix(name) or "no suffix")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")


def within(path: str, root: str) -> bool:
    """Whether a resolved path is the resolved folder `root` or lies in it."""
    return os.path.commonpath([path, root]) == root
