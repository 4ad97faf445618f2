# SPDX-License-Identifier: Apache-2.0
"""What becomes of each picture of a source, and their latents on the way into a set."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shielded.errors import BadInput
from shielded.ingest.picture import Item, Picture, Skipped

HOLD = (2**27, 60.0)  # bytes of latents and seconds after which what was encoded is written

Label = tuple[str, str | None, str]  # id, source, content hash


@dataclass
class Built:
    """What became of the pictures of a source; those in `skipped` are not protected."""

    added: int = 0
    present: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)  # files that are no pictures, by kind
    first_frames: list[str] = field(default_factory=list)  # of several: the others are left out
    taken: int = 0  # pictures of the stream so far, whatever became of them


class Writer:
    """Latents on their way into the ProtectedSet `target`, in large pieces, each image once.

    `hold` says how many bytes of latents and how many seconds may pass before they are written.
    """

    def __init__(self, target: Any, radius: float | None, hold: tuple[int, float] = HOLD):
        self.target, self.radius, self.hold = target, radius, hold
        self.built = Built()
        self.broken = False  # the set refused what it was given: do not try again
        columns = target.entries(["id", "sha256"])
        self.known = {
            name: digest
            for rows in columns
            for name, digest in zip(rows["id"], rows["sha256"], strict=True)
        }
        self._latents: list[Tensor] = []
        self._labels: list[Label] = []
        self._written = time.monotonic()

    def count(self, item: Item, prefix: str = "") -> Picture | None:
        """Count an item of the stream, and give it back if it is a picture."""
        if not isinstance(item, (Picture, Skipped)):
            self.built.aside[item.kind] += 1
            return None
        self.built.taken += 1
        if isinstance(item, Skipped):
            self.skip(prefix + item.id, item.reason)
            return None
        return item

    def has(self, name: str, digest: str) -> bool:
        """Whether the picture is known already; BadInput if its id belongs to another."""
        if name not in self.known:
            return False
        if self.known[name] not in (None, digest):
            raise BadInput("its id belongs to another picture: remove that id or give a prefix")
        self.built.present += 1
        return True

    def keep(self, latents: Tensor, labels: Sequence[Label]) -> None:
        """Take latents (K, ...) that the set can hold; the others are skipped."""
        shape, dtype = self.target.shape, self.target.dtype
        finite = latents.to(getattr(torch, dtype)).isfinite().flatten(1).all(1).tolist()
        for latent, label, whole in zip(latents.cpu(), labels, finite, strict=True):
            if tuple(latent.shape) not in (shape, (self.target.dim,)):
                self.refuse(label, f"its latent has shape {tuple(latent.shape)}, not {shape}")
            elif not whole:
                self.refuse(label, f"its latent is not finite in {dtype}")
            else:
                self._latents.append(latent.reshape(shape))
                self._labels.append(label)

    def refuse(self, label: Label, reason: str) -> None:
        """List a picture that was on its way in; another with its id may come."""
        self.known.pop(label[0], None)
        self.skip(label[0], reason)

    def skip(self, name: str, reason: str) -> None:
        """List a picture that will not be in the set."""
        self.built.skipped.append(Skipped(name, reason))

    def write_if_due(self) -> None:
        """Write if there is much, or if it was long ago."""
        size = len(self._latents) * self.target.dim * 4
        if size >= self.hold[0] or time.monotonic() - self._written >= self.hold[1]:
            self.write()

    def write(self) -> None:
        """The latents into the set, as one version."""
        self._written = time.monotonic()
        if not self._latents:
            return
        latents, labels = torch.stack(self._latents), self._labels
        self._latents, self._labels = [], []
        ids, sources, digests = (list(column) for column in zip(*labels, strict=True))
        radii = None if self.radius is None else [self.radius] * len(ids)
        self.broken = True
        self.target.add(latents, ids=ids, sources=sources, sha256=digests, radii=radii)
        self.broken = False
        self.built.added += len(ids)
