# SPDX-License-Identifier: Apache-2.0
"""Images of a subject by every contender, from the same seeds, made once and kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shielded.bench.kit.contender import PLAIN, Contender
from shielded.bench.kit.sample import draw
from shielded.bench.kit.subject import Subject
from shielded.bench.kit.work import Work
from shielded.samplers.network import counted
from shielded.spaces import Semantic, space_of
from shielded.spell import Spell
from shielded.trace import Record

__all__ = ["Drawn", "Gallery", "change", "shown"]

RUN = 1_000_000  # seeds between two runs
CONDITION = 10_000  # and between two conditions


@dataclass(frozen=True)
class Drawn:
    """What one contender made: C conditions, n images of each, T sampling calls.

    `pictures` (C, n, ch, H, W) uint8; `ratio` (C, n, T) is |delta| / |score|, `active` (C, n, T)
    how many shields were left, `level` (T,) the noise level of each call; `unit` (C,) the median
    distance of a condition's first plain batch.
    """

    pictures: Tensor
    ratio: Tensor
    active: Tensor
    level: Tensor
    unit: Tensor
    seconds: float  # of all sampling
    evaluations: int  # of the network, one an image
    clear: int  # images certified clear, of all

    @property
    def each(self) -> float:
        """Network evaluations an image."""
        return self.evaluations / self.count

    @property
    def images(self) -> Tensor:
        """(C, n, ch, H, W) in [-1, 1]."""
        return shown(self.pictures)

    @property
    def count(self) -> int:
        """Images, of all conditions."""
        return self.pictures.shape[0] * self.pictures.shape[1]

    @property
    def unclear(self) -> int:
        """Images that are not certified clear."""
        return self.count - self.clear


class Gallery:
    """Draws `count` images for each condition of a subject; those made before are looked up."""

    def __init__(
        self,
        subject: Subject,
        count: int,
        folder: Path,
        progress: Callable[[str], None] = lambda text: None,
    ):
        self.subject, self.count, self.progress = subject, count, progress
        about = [subject.name, list(subject.conditions), subject.call, count, subject.precision]
        name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
        self.work = Work(folder / f"{subject.name}-{name}", {"subject": about})

    def draw(self, contender: Contender, run: int = 0) -> Drawn:
        """All images of a contender from the seeds of one run."""
        parts = [self._condition(contender, run, c) for c in range(len(self.subject.conditions))]
        first = parts[0][0]
        notes = [note for _, note in parts]
        return Drawn(
            torch.stack([tensors["pictures"] for tensors, _ in parts]),
            torch.stack([tensors["ratio"] for tensors, _ in parts]),
            torch.stack([tensors["active"] for tensors, _ in parts]),
            first["level"],
            torch.tensor([note["unit"] for note in notes], dtype=torch.float64),
            sum(note["seconds"] for note in notes),
            sum(note["evaluations"] for note in notes),
            sum(note["clear"] for note in notes),
        )

    def unit(self, run: int, c: int, call: dict[str, Any], space: Semantic | None = None) -> float:
        """The median distance between plain images of a condition, made with the same `call`."""
        if space is None:
            return self._condition(Contender("plain", call=call), run, c)[1]["unit"]
        return float(torch.pdist(space.of_pictures(self.batch(run, c, call))).median())

    def batch(self, run: int, c: int, call: dict[str, Any]) -> Tensor:
        """A condition's first plain batch (n, C, H, W), in [-1, 1]."""
        tensors, _ = self._condition(Contender("plain", call=call), run, c)
        return shown(tensors["pictures"][: PLAIN.batch])

    def _condition(self, contender: Contender, run: int, c: int) -> Any:
        text = f"{contender.key} {run} {c}"
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.work.once(name, lambda: self._make(contender, run, c))

    def _make(self, contender: Contender, run: int, c: int) -> Any:
        plain = contender.method == PLAIN.method
        unit = 0.0 if plain else self.unit(run, c, dict(contender.call), contender.space)
        subject = self.subject
        if contender.given is None:
            guidance = contender.make(unit)
        else:
            guidance = contender.given(self.batch(run, c, dict(contender.call)))
        condition = subject.conditions[c]
        self.progress(f"{subject.name}: {contender.title}, run {run + 1}: {condition}")
        pictures, records, clear, seconds = [], [], 0, 0.0
        with counted(subject.pipe) as rows:
            for first in range(0, self.count, contender.batch):
                at = run * RUN + c * CONDITION
                seeds = range(at + first, at + min(first + contender.batch, self.count))
                call = {**subject.call, **contender.call}
                start = time.perf_counter()
                latents, done = draw(subject.pipe, condition, seeds, guidance, **call)
                seconds += time.perf_counter() - start
                if plain and first == 0:
                    measured = space_of(subject.pipe).measure(latents).flatten(1)
                    unit = float(torch.pdist(measured).median()) if len(seeds) > 1 else 0.0
                pictures.append(subject.look(latents))
                records.append(done.trace.of(-1) if isinstance(guidance, Spell) else [])
                clear += 0 if done is None else sum(c.clear for c in done.certificates)
        tensors = {
            "pictures": torch.cat(pictures),
            "ratio": _joined(records, "ratio").float(),
            "active": _joined(records, "active").short(),
            "level": torch.tensor([one.noise_level for one in records[0]], dtype=torch.float64),
        }
        return tensors, {
            "unit": unit,
            "seconds": seconds,
            "evaluations": sum(rows),
            "clear": clear,
        }


def _joined(batches: list[list[Record]], name: str) -> Tensor:
    """(n, T) of all batches' records."""
    parts = [[getattr(record, name).cpu() for record in records] for records in batches]
    return torch.cat([torch.stack(part, 1) if part else torch.zeros(0, 0) for part in parts])


def shown(pictures: Tensor) -> Tensor:
    """Pictures (..., C, H, W) uint8 in [-1, 1], float32."""
    return pictures.float() / 127.5 - 1


def change(made: Tensor, plain: Tensor) -> float:
    """The root mean square difference of pictures, uint8, with colours from 0 to 1."""
    return round(float(((made.double() - plain.double()) / 255).square().mean().sqrt()), 4)
