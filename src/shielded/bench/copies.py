# SPDX-License-Identifier: Apache-2.0
"""Which copies of protected pictures a shield catches, by the space that it measures in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shielded.bench.kit.alterations import ALTERATIONS
from shielded.bench.kit.contender import PLAIN
from shielded.bench.kit.gallery import Gallery
from shielded.bench.kit.plot import heat
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.bench.kit.work import place
from shielded.distances import squared_distances
from shielded.metrics import CopyNet, SmallNet
from shielded.spaces import Colour, Location, Network, Pixels, Semantic, Style

IMAGES = 16
FALSE = 0.01  # of pictures that are no copies may be inside a shield


def spaces(net: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """From pictures (N, C, H, W) in [-1, 1] to points (N, F), by the name of the space."""
    embeddings = {
        "colour": Colour(),
        "location": Location(),
        "style": Style(),
        "network": Network(SmallNet(net)),
        "copies": Network(CopyNet(net)),
    }
    found = {name: Semantic(embedding).of_pictures for name, embedding in embeddings.items()}
    return {"latent": lambda x: Pixels().measure(x).flatten(1), **found}


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    work: Path | None = None,
    images: int = IMAGES,
    model: str = "tiny-sprites",
    one: Subject | None = None,
) -> Table:
    """`images` of each condition are protected; copies of them are changed in each way.

    The radius in each space is the largest at which 1% of as many other pictures of the model,
    from other seeds, are inside a shield of another condition (of its own condition the model may
    have made the same picture twice); half of those choose it, the others are counted.
    """
    one = one or subject(model, steps=4 if smoke else None)
    if smoke:
        images, one.conditions = 8, one.conditions[:2]
    table = Table("copies", f"{one.name}: copies of protected pictures that a shield catches")
    table.notes.append(f"{images} pictures of each condition are protected, made by the model, and")
    table.notes.append("so are the others, from other seeds. Radius: 1% of one half of the others")
    table.notes.append("are inside a shield of another condition; false alarms: of the other half.")
    with place(work) as folder:
        gallery = Gallery(one, images, folder, progress)
        known, others = (gallery.draw(PLAIN, k).images.flatten(0, 1) for k in range(2))
        net = "fashion" if one.name == "tiny-fashion" else "sprites"
        for name, see in spaces(net).items():
            progress(name)
            table.add(space=name, **row(see, known, others, images))
    table.figures["caught"] = picture(table)
    return table


def row(
    see: Callable[[Tensor], Tensor], known: Tensor, others: Tensor, each: int
) -> dict[str, Any]:
    """Radius, false alarms, and the share of each kind of copy that is inside a shield.

    `known` and `others` hold `each` pictures of the first condition, then of the next.
    """
    z = see(known)
    condition = torch.arange(len(known)) // each
    apart = condition[:, None] != condition
    d2 = squared_distances(see(others), z)
    far = torch.where(apart, d2, torch.inf).amin(1).sqrt()
    choose, count = far[::2], far[1::2]
    radius = float(choose.quantile(FALSE))
    told: dict[str, Any] = {"radius": radius, "false alarms": _said(count < radius)}
    for name, change in ALTERATIONS.items():
        copies = see(change(known).clamp(-1, 1))
        told[name] = _said(squared_distances(copies, z).amin(1).sqrt() < radius)
    return told


def picture(table: Table) -> bytes:
    """Shares by space and change."""
    columns = list(ALTERATIONS)
    values = [[float(line[name].rstrip("%")) for name in columns] for line in table.rows]
    rows = [line["space"] for line in table.rows]
    return heat("% of copies caught", rows, columns, values, (0.0, 100.0))


def _said(which: Tensor) -> str:
    return f"{100 * float(which.double().mean()):.1f}%"
