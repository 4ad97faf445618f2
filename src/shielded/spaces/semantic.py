# SPDX-License-Identifier: Apache-2.0
"""Distance between what pictures show: between their embeddings, not their latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.errors import BadInput, NonFinite, ShapeMismatch
from shielded.spaces.decode import decoded
from shielded.spaces.formats import format_of
from shielded.spaces.latent import exact
from shielded.spaces.pixels import Pixels
from shielded.spaces.space import space_of

__all__ = ["Embedding", "Semantic"]


class Embedding(Protocol):
    """A differentiable map from pictures (B, C, H, W) in [-1, 1] to features (B, F)."""

    @property
    def name(self) -> str:
        """What reports, traces and sets on disk call it."""
        ...

    @property
    def unit(self) -> bool:
        """Whether only the direction of the features counts: |u - v|^2 = 2 - 2 cos(u, v)."""
        ...

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, F), with a gradient where the pictures have one."""
        ...


class Semantic:
    """The space of an embedding f of the pictures that latents decode to.

    u(x0) = f(clip(decode(x0))), or u / |u| where only directions count. Finished images are
    measured as the user gets them, in 8 bits.

    Args:
        embedding: f, one of `shielded.spaces` or any `Embedding`.
        decoder: from latents (B, ...) to pictures (B, C, H, W) in about [-1, 1], with a gradient;
            that of the pipeline by default. A `TinyDecoder` is much faster: expected outputs are
            then decoded by it, finished images still by the pipeline's own.
        size: (height, width) of the pictures, where that is not the pipeline's default and its
            latents do not tell.
        chunk: images that are decoded at once; fewer need less memory.

    Raises:
        BadInput: where it is not known how latents are decoded, for features without a direction.
        NonFinite: for features that are NaN or infinite.

    Example:
        >>> from shielded.spaces import Colour
        >>> Semantic(Colour())
        Semantic(Colour())
    """

    box = None

    def __init__(
        self,
        embedding: Embedding,
        decoder: Callable[[Tensor], Tensor] | None = None,
        size: tuple[int, int] | None = None,
        chunk: int = 8,
    ):
        if chunk < 1:
            raise BadInput(f"chunk is {chunk}: it must be 1 or more.")
        self.embedding, self.decoder, self.size, self.chunk = embedding, decoder, size, int(chunk)
        self._found: Callable[[Tensor], Tensor] | None = None

    def bind(self, pipe: Any) -> None:
        """Decode finished images as `pipe` does, and all where no decoder was given."""
        height, width = self.size or (None, None)
        if self.decoder is not None and not isinstance(space_of(pipe), Pixels):
            try:
                format_of(pipe)
            except BadInput:  # it is not known how: the decoder that was given speaks for it
                return
        self._found = lambda latents: decoded(pipe, latents, height, width)

    @property
    def finished(self) -> Semantic:
        """The same space by the decoder of finished images."""
        if self.decoder is None or self._found is None:
            return self
        own = Semantic(self.embedding, None, self.size, self.chunk)
        own._found = self._found
        return own

    @torch.no_grad()
    def features(self, x0: Tensor) -> Tensor:
        """u (B, F) float64 of expected outputs x0 (B, ...)."""
        like = exact(x0[:0])
        parts = x0.split(self.chunk)
        return torch.cat([self._embed(self._look(part)).to(like) for part in parts])

    @torch.no_grad()
    def measure(self, sample: Tensor) -> Tensor:
        """u (B, F) float64 of the 8-bit pictures of finished latents (B, ...)."""
        like, look = exact(sample[:0]), self.finished._look
        parts = sample.split(self.chunk)
        return torch.cat([self.of_pictures(look(part)).to(like) for part in parts])

    @torch.no_grad()
    def of_pictures(self, pictures: Tensor) -> Tensor:
        """u (B, F) float64 of pictures (B, C, H, W) in [-1, 1], rounded to 8 bits first."""
        eight_bit = Pixels().measure(pictures).to(torch.float32)
        parts = eight_bit.split(self.chunk)
        return torch.cat([self._embed(part) for part in parts])

    def pull(self, x0: Tensor, direction: Tensor) -> Tensor:
        """J^T n (B, D) float64 of directions n (B, F) at x0 (B, ...): one pass backwards each."""
        return self._slopes(x0, direction, self._along)

    def _along(self, x: Tensor, n: Tensor) -> Tensor:
        u = self._embed(self._look(x))
        return (u * n.to(u)).sum()

    def towards(self, x0: Tensor, aim: Tensor) -> Tensor:
        """The gradient (B, D) float64 of <f / |f|, m> at x0 (B, ...), for m (B, F).

        One pass forwards and backwards each, through the embedding's bare features f: where they
        are 0 or not finite, so is the gradient. ShapeMismatch for an m of another length.
        """

        def cosine(x: Tensor, m: Tensor) -> Tensor:
            f = self.embedding(self._look(x)).flatten(1).to(torch.float64)
            if f.shape != m.shape:
                raise ShapeMismatch(
                    f"{self!r} has features of {f.shape[1]} numbers, what it is to go towards "
                    f"or away from has {m.shape[1]}: make them with encode(pipe, images, "
                    "space=...)."
                )
            return (f / vector_norm(f, dim=1, keepdim=True) * m.to(f)).sum()

        return self._slopes(x0, aim, lambda x, m: cosine(x, m) + 0 * x.sum())  # f may be constant

    def _slopes(
        self, x0: Tensor, like: Tensor, score: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The gradient (B, D) of a score of x0 (B, ...) and `like` (B, F), chunk by chunk."""
        found = []
        with torch.inference_mode(False), torch.enable_grad():
            for part, n in zip(x0.split(self.chunk), like.split(self.chunk), strict=True):
                x = part.detach().to(torch.float32).clone().requires_grad_()
                (v,) = torch.autograd.grad(score(x, n.detach().clone()), x)
                found.append(v.flatten(1).to(like))
        return torch.cat(found)

    def _look(self, x0: Tensor) -> Tensor:
        decoder = self.decoder or self._found
        if decoder is None:
            raise BadInput(
                "a semantic space needs a decoder where there is no pipeline: give "
                "Semantic(embedding, decoder=...)."
            )
        pictures = decoder(x0.to(torch.float32))
        # The clip is not felt backwards: what is beyond the range now may come back.
        return pictures + (pictures.clamp(-1, 1) - pictures).detach()

    def _embed(self, pictures: Tensor) -> Tensor:
        u = self.embedding(pictures).flatten(1).to(torch.float64)
        if not bool(u.isfinite().all()):
            raise NonFinite(
                f"{self.embedding.name} features hold NaN or infinity: use float32, or a lower "
                "guidance_scale."
            )
        if not self.embedding.unit:
            return u
        length = vector_norm(u, dim=1, keepdim=True)
        if not bool((length > 0).all()):
            raise BadInput(
                f"a picture has {self.embedding.name} features that are all 0, so no direction: "
                "use another space for such pictures."
            )
        return u / length

    def __repr__(self) -> str:
        return f"Semantic({self.embedding!r})"
