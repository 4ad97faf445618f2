# SPDX-License-Identifier: Apache-2.0
"""Figure 6: sixteen images one by one, each shielded from all before it."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from shielded.bench.kit.sample import draw
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.guidance import flat
from shielded.report.pair import Pair
from shielded.report.sheet import contact_sheet
from shielded.shields import Shields
from shielded.spaces import space_of
from shielded.spell import Spell

IMAGES = 16
SHOWN = 3  # conditions
SHARE = 0.75  # of the median distance of the plain images


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    model: str = "tiny-sprites",
    one: Subject | None = None,
    images: int = IMAGES,
) -> Table:
    """Some conditions of a model: which images were changed, and how near the nearest is."""
    one = one or subject(model, steps=4 if smoke else None)
    count = 1 if smoke else SHOWN
    images = 4 if smoke else images
    conditions = one.conditions[:: max(1, len(one.conditions) // count)][:count]
    table = Table(
        "one_by_one", f"{one.name}: {images} images one by one, each away from all before"
    )
    table.notes.append("Same seeds. Nearest: the distance of the nearest image before it.")
    pairs: list[Pair] = []
    for condition in conditions:
        progress(condition)
        plain = [draw(one.pipe, condition, [seed], **one.call)[0] for seed in range(images)]
        before = _measured(one, plain)
        radius = SHARE * float(torch.pdist(before).median())
        spell, shielded, told = Spell(Shields.history(), radius), [], []
        for seed in range(images):
            latents, done = draw(one.pipe, condition, [seed], spell, **one.call)
            shielded.append(latents)
            told.append(done.certificates[-1])
        after = _measured(one, shielded)
        for k in range(1, images):
            table.add(
                **{
                    "asked for": condition,
                    "image": k + 1,
                    "radius": radius,
                    "nearest, plain": _nearest(before, k),
                    "nearest, SPELL": _nearest(after, k),
                    "SPELL acted": "yes" if told[k].intervened else "no",
                    "the plain image": "yes" if torch.equal(plain[k], shielded[k]) else "no",
                }
            )
        shown = [_image(one, latents) for latents in (*plain, *shielded)]
        for k in range(images):
            held = told[k].to_dict()
            pairs.append(Pair(k, k, condition, shown[images + k], held, shown[k]))
    table.figures["sheet"] = _png(contact_sheet(pairs, "one by one"))
    return table


def _measured(one: Subject, latents: list[Tensor]) -> Tensor:
    return flat(space_of(one.pipe).measure(torch.cat(latents)))


def _nearest(x: Tensor, k: int) -> float:
    return float((x[:k] - x[k]).norm(dim=1).min())


def _image(one: Subject, latents: Tensor) -> Image.Image:
    pixels = one.look(latents)[0].permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _png(page: Image.Image) -> bytes:
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()
