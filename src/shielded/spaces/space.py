# SPDX-License-Identifier: Apache-2.0
"""What a space has to say, and which one a pipeline works in."""

from typing import Any, Protocol

from torch import Tensor


class Space(Protocol):
    """The place where distances between finished images are measured."""

    @property
    def box(self) -> tuple[float, float] | None:
        """The interval that every number of a finished image is confined to, if any."""
        ...

    def measure(self, sample: Tensor) -> Tensor:
        """The finished image (B, ...) that `sample` (B, ...) stands for, as float64."""
        ...


# Components that turn latents into pixels, by the names that diffusers' pipelines give them.
DECODERS = (
    "vae",
    "vqvae",
    "movq",
    "vqgan",
    "image_vae",
    "vae_decoder",
    "decoder_vae",
    "first_stage",
)


def name_of(space: Space | None) -> str:
    """What reports and files call a space: its embedding's name, or "latent"."""
    embedding = getattr(space, "embedding", None)
    return "latent" if embedding is None else embedding.name


def bound(space: Space | None, pipe: Any) -> Space:
    """The space, told how `pipe` decodes if that is its matter; the pipeline's own for None."""
    if space is None:
        return space_of(pipe)
    bind = getattr(space, "bind", None)
    if bind is not None and pipe is not None:
        bind(pipe)
    return space


def space_of(pipe: Any) -> Space:
    """Pixels for a pipeline without any decoder (IF, DDPM, the bundled ones), else Latent.

    A pipeline may say so itself through an attribute `shield_space`.
    """
    from shielded.spaces.latent import Latent
    from shielded.spaces.pixels import Pixels

    stated = getattr(pipe, "shield_space", None)
    if stated is not None:
        return stated
    components = getattr(pipe, "components", None)
    if not isinstance(components, dict):
        return Latent()
    decodes = any(components.get(name) is not None for name in DECODERS)
    return Latent() if decodes or "unet" not in components else Pixels()
