# SPDX-License-Identifier: Apache-2.0
"""What the processes of a build on Ray do: read and decode, and encode."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from shielded import cluster
from shielded.errors import BadInput, ShapeMismatch
from shielded.ingest.archive import Archive
from shielded.ingest.build import encoded
from shielded.ingest.latents import Latents
from shielded.ingest.picture import Aside, Item, Picture, Skipped, decode
from shielded.ingest.single import Single
from shielded.ingest.source import Piece
from shielded.ingest.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = {kind.__name__: kind for kind in (Single, Archive, Table, Latents)}
FILES = 64  # files that one task reads; one that holds many pictures is a task of its own
ROWS = 16  # pictures that a task hands on together

Row = dict[str, Any]


def tables(found: Iterable[Piece]) -> Iterator[pa.Table]:
    """A row for each file and for what cannot be had; one table is read by one task."""
    rows: list[Row] = []
    for place, piece in enumerate(found):
        if isinstance(piece, (Skipped, Aside)):
            row = _row(place, piece)
        else:
            kind, path = type(piece).__name__, piece.path.encode("utf-8", "surrogateescape")
            row = {"place": place, "kind": kind, "path": path, "id": piece.name}
        alone = row.get("kind", "Single") != "Single"
        if rows and (alone or len(rows) == FILES):
            yield table(rows)
            rows = []
        rows.append(row)
        if alone:
            yield table(rows)
            rows = []
    if rows:
        yield table(rows)


def read(
    block: pa.Table, known: Any, prefix: str, size: tuple[int, int], limit: int
) -> Iterator[pa.Table]:
    """Turn rows of files into rows of pictures, read and decoded unless they are in the set.

    `known` refers to the ids of the set, sorted.
    """
    names, rows = cluster.engine().get(known), []
    for row in block.to_pylist():
        if row["kind"] is None:
            rows.append(row)
            continue
        path = row["path"].decode("utf-8", "surrogateescape")
        for item in KINDS[row["kind"]](path, row["id"]):
            done = _row(row["place"], item)
            if isinstance(item, Picture):
                try:
                    _open(done, item, names, prefix, size, limit)
                except BadInput as error:
                    done["reason"] = str(error)
            rows.append(done)
            if len(rows) >= ROWS:
                yield table(rows)
                rows = []
    yield table(rows)


def _row(place: int, item: Item) -> Row:
    """An item of the piece at a place of the source."""
    if isinstance(item, Aside):
        return {"place": place, "aside": item.kind}
    if isinstance(item, Skipped):
        return {"place": place, "id": item.id, "reason": item.reason}
    return {"place": place, "id": item.id, "source": item.source}


def _open(
    row: Row, item: Picture, known: pa.Array, prefix: str, size: tuple[int, int], limit: int
) -> None:
    """Put what a picture holds into its row, or the hash alone if the set has its id."""
    data = item.read()
    row["sha256"] = hashlib.sha256(data).hexdigest()
    name = prefix + item.id
    at = bisect_left(known, name, key=lambda text: text.as_py())
    if at < len(known) and known[at].as_py() == name:
        return
    if item.latent is not None:
        row |= _latent(torch.from_numpy(item.latent))
        return
    image, row["several"] = decode(data, limit)
    from shielded.spaces.encode import fitted

    row["picture"] = fitted(image, *size).tobytes()


class Encoder:
    """A pipeline in an actor, and what it makes of rows with pictures."""

    def __init__(self, load: Callable[[], Any], facts: dict[str, Any], size: tuple[int, int]):
        self.load, self.facts, self.size = load, facts, size
        self._pipe: Any = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """The rows with latents for pictures."""
        rows = block.to_pylist()
        shown = [row for row in rows if row["picture"] is not None]
        height, width = self.size
        images = [Image.frombytes("RGB", (width, height), row["picture"]) for row in shown]
        for row, latent in zip(shown, self._encoded(images), strict=True):
            row |= {"reason": latent} if isinstance(latent, str) else _latent(latent)
            row["picture"] = None
        return table(rows)

    def _encoded(self, images: list[Image.Image]) -> list[torch.Tensor | str]:
        from shielded.spaces import fingerprint, mismatch

        if not images:
            return []
        if self._pipe is None:
            pipe = self.load()
            other = mismatch(self.facts, fingerprint(pipe, *self.size))
            if other is not None:
                raise ShapeMismatch(
                    f"a machine of the cluster has another model ({other}): put the same on all."
                )
            self._pipe = pipe
        return encoded(self._pipe, images, self.size)


def _latent(latent: torch.Tensor) -> Row:
    return {"latent": latent.numpy().astype(np.float32).tobytes(), "shape": list(latent.shape)}


def table(rows: list[Row]) -> pa.Table:
    """Rows as they go between processes; what they do not say is None."""
    import pyarrow as pa

    text, data = pa.string(), pa.large_binary()
    kinds = {
        "place": pa.int64(), "kind": text, "path": data, "id": text, "source": text,
        "sha256": text, "reason": text, "aside": text, "several": pa.bool_(),
        "picture": data, "latent": data, "shape": pa.list_(pa.int64()),
    }  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items())))
