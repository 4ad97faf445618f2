# SPDX-License-Identifier: Apache-2.0
"""New rows: everything that is checked before an image may enter a set."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from shielded.errors import BadInput, NonFinite, ShapeMismatch
from shielded.shields.shields import check_radius
from shielded.shields.store.header import Header

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


def schema(header: Header) -> "pa.Schema":
    """The columns of a set."""
    import pyarrow as pa

    number = pa.float16() if header.dtype == "float16" else pa.float32()
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("latent", pa.list_(number, header.dim), nullable=False),
            pa.field("radius", pa.float32()),
            pa.field("source", pa.string()),
            pa.field("sha256", pa.string()),
            pa.field("added", pa.timestamp("us", "UTC"), nullable=False),
            pa.field("metadata", pa.string()),
        ]
    )


def table(
    header: Header,
    latents: Tensor | np.ndarray,
    ids: Sequence[str] | None,
    sources: Sequence[str | None] | None,
    sha256: Sequence[str | None] | None,
    metadata: Sequence[dict[str, Any] | None] | None,
    radii: Sequence[float | None] | None,
) -> "pa.Table":
    """New rows as a table, or the error that says what is wrong with them."""
    import pyarrow as pa

    z = flat(header, latents)
    names = [content(row) for row in z] if ids is None else _column("ids", ids, len(z), _text)
    refuse(repeated(names), "repeats among the ids to add", "give each image an id of its own")
    columns = [
        pa.array(names, pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(z.reshape(-1)), header.dim),
        pa.array(_column("radii", radii, len(z), check_radius), pa.float32()),
        pa.array(_column("sources", sources, len(z), _text), pa.string()),
        pa.array(_column("sha256", sha256, len(z), _text), pa.string()),
        pa.array([datetime.now(UTC)] * len(z), pa.timestamp("us", "UTC")),
        pa.array(_column("metadata", metadata, len(z), _json), pa.string()),
    ]
    if None in names:
        raise BadInput("an id is None: give every image an id, or leave ids out.")
    return pa.table(columns, schema=schema(header))


def flat(header: Header, latents: Tensor | np.ndarray) -> np.ndarray:
    """Latents (K, ...) as (K, D) in the stored dtype; NonFinite if any is not a number in it."""
    x = torch.as_tensor(latents).detach()
    if tuple(x.shape[1:]) != header.shape:
        raise ShapeMismatch(
            f"the set holds latents of shape {header.shape}, these are {tuple(x.shape)}: give "
            "(K, ...) of the same model and image size, or make another set."
        )
    z = x.flatten(1).to("cpu", getattr(torch, header.dtype)).contiguous()
    bad = (~z.isfinite()).any(1).nonzero()[:, 0].tolist()
    if bad:
        fits = "" if bool(x[bad].isfinite().all()) else "NaN or infinity"
        raise NonFinite(
            f"latents {_few(bad)} hold {fits or 'numbers too large for float16'}: "
            + ("encode those images again." if fits else "make the set with dtype='float32'.")
        )
    return z.numpy()


def content(row: np.ndarray) -> str:
    """The id of a latent that was given none: a hash of its stored bytes."""
    return hashlib.sha256(row.tobytes()).hexdigest()[:32]


def repeated(ids: Iterable[T]) -> list[T]:
    """Those that come more than once."""
    seen, again = set(), {}
    for name in ids:
        if name in seen:
            again[name] = None
        seen.add(name)
    return list(again)


def several(ids: Iterable[str]) -> list[str]:
    """The ids, each once; a single text is refused, whose letters nobody means."""
    if isinstance(ids, str):
        raise BadInput("ids is one text: give a list of ids.")
    return list(dict.fromkeys(ids))


def refuse(ids: Sequence[Any], what: str, remedy: str) -> None:
    """Raise BadInput naming the first few ids, if there are any."""
    if ids:
        raise BadInput(f"{_few(ids)} {what}: {remedy}.")


def _few(names: Sequence[Any]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _column(
    name: str, values: Sequence[Any] | None, rows: int, check: Callable[[Any], Any]
) -> list[Any]:
    """One checked value a row; None stays None."""
    if values is None:
        return [None] * rows
    if isinstance(values, str) or len(values) != rows:
        count = "one text" if isinstance(values, str) else str(len(values))
        raise BadInput(f"{name}: {count} for {rows} latents, give one an image.")
    return [None if value is None else check(value) for value in values]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadInput(f"{value!r} is not a text: ids, sources and hashes are non-empty strings.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{value!r} is not valid Unicode: rename it.") from error
    return value


def _json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"metadata is not made of JSON values: {error}.") from error
