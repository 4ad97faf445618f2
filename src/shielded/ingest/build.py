# SPDX-License-Identifier: Apache-2.0
"""From a stream of pictures to the entries of a protected set.

D flattened size of a latent
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from shielded.errors import BadInput, NonFinite
from shielded.ingest.picture import LIMIT_PIXELS, Aside, Picture, Skipped, decode
from shielded.ingest.source import Source

HOLD = (2**27, 60.0)  # bytes of latents and seconds after which what was encoded is written
OPEN_PIXELS = 2**26  # decoded at most, before they are encoded

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


def build(
    target: Any,
    pipe: Any,
    source: Source,
    batch: int = 16,
    *,
    size: tuple[int | None, int | None] = (None, None),
    radius: float | None = None,
    prefix: str = "",
    limit: int = LIMIT_PIXELS,
    hold: tuple[int, float] = HOLD,
    tell: Callable[[float, Built], None] | None = None,
) -> Built:
    """Add every picture of `source` to the ProtectedSet `target`, `batch` encoded together.

    A picture whose id is in the set already is passed over before it is decoded, so that a build
    which was killed goes on where it was; if its content is another one, it is skipped and listed.
    `size` is the (height, width) to encode at, `radius` the radius of these pictures alone,
    `prefix` goes before every id, `limit` is in pixels, `hold` says how many bytes of latents and
    how many seconds may pass before they are written, `tell` hears of progress. Nothing that a
    picture may hold ends the build; what does (a full disk, Ctrl-C) leaves in the set what was
    encoded.
    """
    work = _Work(target, pipe, batch, size, radius, limit, hold)
    try:
        for item in source:
            work.take(item, prefix)
            if tell is not None:
                tell(source.share, work.built)
        work.encode()
    except BaseException:
        if not work.broken:
            work.write()
        raise
    work.write()
    if tell is not None:
        tell(1.0, work.built)
    return work.built


@dataclass
class _Work:
    """Pictures on their way into the set: decoded, then encoded, then written."""

    target: Any
    pipe: Any
    batch: int
    size: tuple[int | None, int | None]
    radius: float | None
    limit: int
    hold: tuple[int, float]
    built: Built = field(default_factory=Built)
    broken: bool = False  # the set refused what it was given: do not try again

    def __post_init__(self) -> None:
        columns = self.target.entries(["id", "sha256"])
        self.known = {
            name: digest
            for rows in columns
            for name, digest in zip(rows["id"], rows["sha256"], strict=True)
        }
        self.images: list[Image.Image] = []
        self.waiting: list[Label] = []  # of `images`
        self.latents: list[Tensor] = []
        self.labels: list[Label] = []  # of `latents`
        self.written = time.monotonic()

    def take(self, item: Picture | Skipped | Aside, prefix: str) -> None:
        """One item of the stream."""
        if isinstance(item, Aside):
            self.built.aside[item.kind] += 1
            return
        self.built.taken += 1
        name = prefix + item.id
        if isinstance(item, Skipped):
            self.built.skipped.append(Skipped(name, item.reason))
            return
        try:
            self._open(item, name)
        except BadInput as error:
            self.built.skipped.append(Skipped(name, str(error)))
        pixels = sum(image.width * image.height for image in self.images)
        if len(self.images) >= self.batch or pixels > OPEN_PIXELS:
            self.encode()
        size = len(self.latents) * self.target.dim * 4
        if size >= self.hold[0] or time.monotonic() - self.written >= self.hold[1]:
            self.write()

    def _open(self, item: Picture, name: str) -> None:
        """Decode a picture that is new; BadInput with a short reason if that cannot be."""
        data = item.read()
        digest = hashlib.sha256(data).hexdigest()
        if name in self.known:
            if self.known[name] not in (None, digest):
                raise BadInput("its id belongs to another picture: remove that id or give a prefix")
            self.built.present += 1
            return
        label = (name, item.source, digest)
        if item.latent is not None:
            self.known[name] = digest
            self._keep(torch.from_numpy(item.latent)[None], [label])
        else:
            image, several = decode(data, self.limit)
            if several:
                self.built.first_frames.append(name)
            self.known[name] = digest
            self.images.append(image)
            self.waiting.append(label)

    def encode(self) -> None:
        """The decoded pictures as latents."""
        from shielded.spaces import encode

        if not self.images:
            return
        images, labels = self.images, self.waiting
        self.images, self.waiting = [], []
        try:
            self._keep(encode(self.pipe, images, *self.size), labels)
        except NonFinite as error:
            if len(images) == 1:
                self._refuse(labels[0], str(error))
                return
            for image, label in zip(images, labels, strict=True):  # which of them is it?
                self.images, self.waiting = [image], [label]
                self.encode()

    def _keep(self, latents: Tensor, labels: Sequence[Label]) -> None:
        """Latents (K, ...) that the set can hold; the others are skipped."""
        shape, dtype = self.target.shape, self.target.dtype
        finite = latents.to(getattr(torch, dtype)).isfinite().flatten(1).all(1).tolist()
        for latent, label, whole in zip(latents.cpu(), labels, finite, strict=True):
            if tuple(latent.shape) not in (shape, (self.target.dim,)):
                self._refuse(label, f"its latent has shape {tuple(latent.shape)}, not {shape}")
            elif not whole:
                self._refuse(label, f"its latent is not finite in {dtype}")
            else:
                self.latents.append(latent.reshape(shape))
                self.labels.append(label)

    def _refuse(self, label: Label, reason: str) -> None:
        self.known.pop(label[0], None)
        self.built.skipped.append(Skipped(label[0], reason))

    def write(self) -> None:
        """The latents into the set, as one version."""
        self.written = time.monotonic()
        if not self.latents:
            return
        latents, labels = torch.stack(self.latents), self.labels
        self.latents, self.labels = [], []
        ids, sources, digests = (list(column) for column in zip(*labels, strict=True))
        radii = None if self.radius is None else [self.radius] * len(ids)
        self.broken = True
        self.target.add(latents, ids=ids, sources=sources, sha256=digests, radii=radii)
        self.broken = False
        self.built.added += len(ids)
