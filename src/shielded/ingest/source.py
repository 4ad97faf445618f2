# SPDX-License-Identifier: Apache-2.0
"""Which kind of source a path is."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from shielded.errors import BadInput
from shielded.ingest import archive, latents, table
from shielded.ingest.archive import Archive
from shielded.ingest.folder import Folder
from shielded.ingest.latents import Latents
from shielded.ingest.listing import Listing
from shielded.ingest.picture import Aside, Item, Skipped, clean
from shielded.ingest.single import Single
from shielded.ingest.table import Table

LISTS = (".txt", ".lst", ".list")

File = Single | Archive | Table | Latents
Piece = File | Skipped | Aside


class Source(Protocol):
    """A stream of pictures that tells how much of it has passed."""

    share: float  # from 0 to 1

    def __iter__(self) -> Iterator[Item]:
        """Pictures, those that cannot be had, and what is no picture."""
        ...


def open_source(path: str | Path | Sequence[str | Path], named: bool = False) -> Source:
    """A folder, list, archive, table, file of latents or picture, or several of them in turn.

    With `named` the ids of several begin with the path of each, so that none can clash.
    """
    if not isinstance(path, (str, Path)):
        named = named and len(path) > 1
        return Several([(open_source(one), f"{one}/" if named else "") for one in path])
    path = Path(path)
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise BadInput(f"there is no file or folder {path}: check the path.")
    if path.name.lower().endswith(LISTS):
        return Listing(path)
    whole = str(path.resolve())
    return container(whole, clean(path.name)) or Single(whole, clean(path.name))


def container(path: str, name: str) -> Archive | Table | Latents | None:
    """A file that holds many pictures, by its suffix; None for any other. `name` begins the ids."""
    for module, kind in ((archive, Archive), (table, Table), (latents, Latents)):
        if path.lower().endswith(module.SUFFIXES):
            return kind(path, name)
    return None


def pieces(source: Source) -> Iterator[Piece]:
    """The files that a source (one without `named`) is made of, none of them read."""
    if isinstance(source, Several):
        for one, _ in source.sources:
            yield from pieces(one)
    elif isinstance(source, (Folder, Listing)):
        yield from source.pieces()
    else:
        yield cast(File, source)


class Several:
    """Sources one after the other, each with what begins its ids."""

    def __init__(self, sources: Sequence[tuple[Source, str]]):
        self.sources = sources
        self.share = 0.0

    def __iter__(self) -> Iterator[Item]:
        for done, (source, prefix) in enumerate(self.sources):
            for item in source:
                if prefix and not isinstance(item, Aside):
                    item = replace(item, id=clean(prefix) + item.id)
                yield item
                self.share = (done + source.share) / len(self.sources)
