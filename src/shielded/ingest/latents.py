# SPDX-License-Identifier: Apache-2.0
"""Latents that were encoded elsewhere: safetensors or npz, never pickle."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from shielded.ingest.picture import Item, Picture, Skipped, clean

SUFFIXES = (".safetensors", ".npz")
ROWS = 256  # read together


class Latents:
    """The rows of an array `latents` (K, ...), or of the only array of two or more dimensions.

    Ids come from an array `ids` of strings (npz) or the metadata `ids`, a JSON list (safetensors),
    else they are `name`/row number. Their content hash is that of a row's float32 bytes.
    """

    def __init__(self, path: str, name: str):
        self.path, self.name = path, name
        self.share = 0.0

    def __iter__(self) -> Iterator[Item]:
        read = _npz if self.path.lower().endswith(".npz") else _safetensors
        row = 0
        try:
            for total, ids, block in read(self.path):
                if ids is not None and len(ids) != total:
                    raise ValueError(f"{len(ids)} ids for {total} rows")
                for latent in block:
                    name = f"{self.name}/{row}" if ids is None else clean(str(ids[row]))
                    yield Picture(name, clean(f"{self.path}/{row}"), latent.tobytes, latent)
                    row += 1
                    self.share = row / total
        except MemoryError:
            yield Skipped(self.name, "the latents do not fit into memory: split the file")
        except Exception as error:  # of two libraries, with kinds of their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            yield Skipped(self.name, f"row {row} on cannot be read as latents ({reason})")


Block = tuple[int, Any, np.ndarray]


def _safetensors(path: str) -> Iterator[Block]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
        rows = file.get_slice(_pick(shapes))
        listed = (file.metadata() or {}).get("ids")
        ids = None if listed is None else json.loads(listed)
        total = rows.get_shape()[0]
        for start in range(0, total, ROWS):
            yield total, ids, rows[start : start + ROWS].float().numpy()


def _npz(path: str) -> Iterator[Block]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    rows = arrays[_pick({key: array.shape for key, array in arrays.items()})]
    for start in range(0, len(rows), ROWS):
        block = np.ascontiguousarray(rows[start : start + ROWS], dtype=np.float32)
        yield len(rows), arrays.get("ids"), block


def _pick(shapes: dict[str, Any]) -> str:
    """The name of the array that holds the latents."""
    if "latents" in shapes:
        return "latents"
    large = [key for key, shape in shapes.items() if len(shape) > 1]
    if len(large) != 1:
        raise ValueError(f"no array latents among {', '.join(shapes) or 'none'}")
    return large[0]
