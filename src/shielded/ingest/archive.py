# SPDX-License-Identifier: Apache-2.0
"""The pictures of a tar archive, such as a WebDataset shard, read in place."""

import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from lzma import LZMAError
from typing import Any

from shielded.errors import BadInput
from shielded.ingest.picture import (
    HEAD,
    LIMIT_BYTES,
    TOO_LARGE,
    Aside,
    Item,
    Picture,
    Skipped,
    clean,
    promises_picture,
    suffix,
)

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError, ValueError)
BLOCK = 512


class Archive:
    """Every picture of a tar file; the id is `name`/member, and no member is written to disk.

    Members are read through the archive, so that names with ".." are names and nothing more. A
    second member of the same name gets "#2" after it.
    """

    def __init__(self, path: str, name: str):
        self.path, self.name = path, name
        self.share = 0.0
        self._links: list[tuple[str, str]] = []
        self._seen: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Item]:
        try:
            with open(self.path, "rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
                archive: Any = tar
                size = os.fstat(raw.fileno()).st_size or 1
                while (member := tar.next()) is not None:
                    yield from self._member(tar, member)
                    archive.members = []  # it would remember every member
                    self.share = min(raw.tell() / size, 1.0)
                self._end(tar)
        except DAMAGE as error:
            reason = str(error).rstrip(". ") or type(error).__name__
            yield Skipped(self.name, f"the archive cannot be read to its end ({reason})")
        self.share = 1.0
        for name, target in self._links:
            if self._seen[target]:
                yield Aside("link")
            else:
                yield Skipped(self._id(name), "a link to a file that is not in the archive")

    def _member(self, tar: Any, member: tarfile.TarInfo) -> Iterator[Item]:
        if member.islnk() or member.issym():
            base = os.path.dirname(member.name) if member.issym() else ""
            target = os.path.normpath(os.path.join(base, member.linkname))
            self._links.append((member.name, target))
            return
        if member.isdir():
            return
        plain = os.path.normpath(member.name)
        self._seen[plain] += 1
        count = self._seen[plain]
        name = self._id(member.name) + (f"#{count}" if count > 1 else "")
        if not member.isreg():
            yield Skipped(name, "not a regular file")
            return
        if os.path.basename(member.name).startswith("."):
            yield Aside("hidden")
            return
        file = tar.extractfile(member)
        if not promises_picture(member.name, file.read(HEAD)):
            yield Aside(suffix(member.name) or "no suffix")
        elif member.size > LIMIT_BYTES:
            yield Skipped(name, TOO_LARGE)
        else:
            yield Picture(name, clean(f"{self.path}/{member.name}"), lambda: _read(file))

    def _end(self, tar: tarfile.TarFile) -> None:
        """Raise unless the archive ends with a block of zeros: tarfile takes damage for an end."""
        file: Any = tar.fileobj
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError("there is no end mark: it is cut short or damaged")
        while block := file.read(2**20):
            if block.strip(b"\0"):
                raise tarfile.ReadError("there is more after its end mark: is it two in one file?")

    def _id(self, member: str) -> str:
        return f"{self.name}/{clean(member)}"


def _read(file: Any) -> bytes:
    file.seek(0)
    try:
        return file.read()
    except DAMAGE as error:
        raise BadInput(f"cannot be read from the archive ({error})") from None
