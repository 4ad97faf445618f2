# SPDX-License-Identifier: Apache-2.0
"""A text file with one path a line."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shielded.errors import BadInput
from shielded.ingest.folder import within
from shielded.ingest.picture import Item, Skipped, clean
from shielded.ingest.single import Single

if TYPE_CHECKING:
    from shielded.ingest.source import File


class Listing:
    """The pictures, archives and tables that a list names; the id is the path as a plain path.

    A relative path starts at the list's folder and may not leave it, by ".." or by a link. An
    absolute path is taken at its word: whoever writes it means that very file.
    """

    def __init__(self, path: Path):
        try:
            text = path.read_text("utf-8-sig", errors="surrogateescape")
        except OSError as error:
            raise BadInput(f"{path} cannot be read ({error.strerror or error}).") from error
        if "\0" in text:
            raise BadInput(f"{path} is not a list: give a text file with one path a line.")
        self.lines = [line.strip() for line in text.splitlines() if line.strip()]
        self.root = os.path.realpath(path.parent)
        self.share = 0.0

    def __iter__(self) -> Iterator[Item]:
        for done, piece in enumerate(self.pieces()):
            if isinstance(piece, Skipped):
                yield piece
            else:
                for item in piece:
                    yield item
                    self.share = (done + piece.share) / len(self.lines)
            self.share = (done + 1) / len(self.lines)

    def pieces(self) -> "Iterator[File | Skipped]":
        """The file that each line names, not read, or why it cannot be had."""
        return map(self._line, self.lines)

    def _line(self, line: str) -> "File | Skipped":
        from shielded.ingest.source import container

        path = os.path.realpath(os.path.join(self.root, line))
        name = clean(os.path.normpath(line).replace(os.sep, "/"))
        if not os.path.isabs(line) and not within(path, self.root):
            return Skipped(name, "a relative path that leaves the list's folder: write it in full")
        if not os.path.isfile(path):
            there = os.path.exists(path)
            return Skipped(name, "not a regular file" if there else "there is no such file")
        return container(path, name) or Single(path, name)
