# SPDX-License-Identifier: Apache-2.0
"""Building on Ray Data: tasks read and decode, actors encode, and this process alone writes.

Between them go tables with a row for each picture, in the order of the source: so the set becomes
what `build` makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shielded import cluster
from shielded.errors import BadInput
from shielded.ingest.build import kept
from shielded.ingest.picture import LIMIT_PIXELS, Aside, Skipped
from shielded.ingest.ray_work import Encoder, Row, read, tables
from shielded.ingest.source import Source, pieces
from shielded.ingest.writer import HOLD, Built, Writer

if TYPE_CHECKING:
    import pyarrow as pa

# Of a processor: so both have room on a single one. They differ, else Ray Data would make them one.
READING, ENCODING = 0.25, 0.5


def ray_build(
    target: Any,
    load: Callable[[], Any],
    source: Source,
    batch: int = 16,
    *,
    size: tuple[int, int],
    radius: float | None = None,
    prefix: str = "",
    limit: int = LIMIT_PIXELS,
    hold: tuple[int, float] = HOLD,
    tell: Callable[[float, Built], None] | None = None,
    gpu: bool = False,
) -> Built:
    """Do what `build` does with the processors that Ray has, and with its GPUs if `gpu` is set.

    Each actor has a pipeline of its own, which `load` makes: one actor a GPU, else at most one for
    every second processor. All machines need the pictures and the model under the same paths. The
    names of all files of `source` are gathered first.
    """
    ray, writer = cluster.started(), Writer(target, radius, hold)
    with kept(writer), cluster.answered("a part of the build"):
        blocks = list(tables(pieces(source)))
        files = sum(block.num_rows for block in blocks)
        reading = {
            "known": ray.put(_names(writer.known)),
            "prefix": prefix,
            "size": size,
            "limit": limit,
        }
        encoder = {"load": load, "facts": target.fingerprint, "size": size}
        for row in _rows(ray, blocks, reading, encoder, batch, gpu):
            _take(writer, row, prefix)
            writer.write_if_due()
            if tell is not None:
                tell((row["place"] + 1) / files, writer.built)
    if tell is not None:
        tell(1.0, writer.built)
    return writer.built


def _rows(
    ray: Any, blocks: list[pa.Table], reading: Row, encoder: Row, batch: int, gpu: bool
) -> Iterator[Row]:
    """What became of each picture, in the order of the source, while others are worked on."""
    if not blocks:
        return
    there = ray.cluster_resources()
    readers = int(there.get("CPU", 1)) // (1 if gpu else 2)
    encoders = int(there.get("GPU", 1)) if gpu else readers
    work = ray.data.from_arrow(blocks).map_batches(
        read,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=max(1, readers)),
        fn_kwargs=reading,
        num_cpus=READING,
    )
    work = work.map_batches(
        Encoder,
        batch_size=batch,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, encoders)),
        fn_constructor_kwargs=encoder,
        **({"num_gpus": 1} if gpu else {"num_cpus": ENCODING}),
    )
    work.context.execution_options.preserve_order = True
    work.context.enable_progress_bars = False
    for block in work.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from block.to_pylist()


def _take(writer: Writer, row: Row, prefix: str) -> None:
    """What has become of a picture goes to the writer, as `build` would have it."""
    if row["aside"] is not None:
        writer.count(Aside(row["aside"]))
        return
    if row["sha256"] is None:
        writer.count(Skipped(row["id"], row["reason"]), prefix)
        return
    writer.built.taken += 1
    name, digest = prefix + row["id"], row["sha256"]
    try:
        if writer.has(name, digest):
            return
    except BadInput as error:
        writer.skip(name, str(error))
        return
    if row["several"]:
        writer.built.first_frames.append(name)
    if row["latent"] is None:
        writer.skip(name, row["reason"])
        return
    writer.known[name] = digest
    latent = torch.from_numpy(np.frombuffer(row["latent"], np.float32).copy())
    writer.keep(latent.reshape(1, *row["shape"]), [(name, row["source"], digest)])


def _names(known: Iterable[str]) -> pa.Array:
    """Ids in order, which processes of a machine share without a copy."""
    import pyarrow as pa

    return pa.array(sorted(known), pa.large_string())
