# SPDX-License-Identifier: Apache-2.0
"""The calls of a pipeline's network, before classifier-free guidance mixes what they give.

A pipeline asks for the prediction with the condition ("told") and the one without ("plain")
either in one call of a doubled batch or in two calls, told first. While a block lasts, each call
of the network's `forward` goes through a function of ours, which may change both sides of it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shielded.samplers.affine import Affine, affine
from shielded.samplers.rows import Rows

__all__ = ["Call", "Place", "coming", "counted", "intercepted", "networks", "read"]

# Where pipelines keep what they sample with; a pipeline has networks of one line only.
NAMES = (("transformer", "transformer_2"), ("unet",), ("prior",), ("decoder",))

# Pipelines that put the told half first in a doubled batch (by reading diffusers 0.42).
TOLD_FIRST = ("DiTPipeline", "LuminaPipeline", "LuminaText2Img", "ZImage", "AceStep")

# Arguments with one row an image; a call with others of that length is never cut in half.
BY_ROW = {
    "added_cond_kwargs",
    "attention_mask",
    "cap_feats",
    "class_labels",
    "crop_coords",
    "down_block_additional_residuals",
    "encoder_attention_mask",
    "encoder_hidden_states",
    "encoder_hidden_states_image",
    "encoder_hidden_states_mask",
    "encoder_hidden_states_t5",
    "encoder_mask",
    "guidance",
    "image_meta_size",
    "mid_block_additional_residual",
    "original_size",
    "pooled_projections",
    "style",
    "t",
    "target_size",
    "text_embedding_mask",
    "text_embedding_mask_t5",
    "timestep",
    "timestep_cond",
}
SHARED = {"image_rotary_emb", "img_ids", "txt_ids"}  # as long as a sequence, whatever the batch


@dataclass(frozen=True, slots=True)
class Place:
    """Where on its way the sampler is."""

    timestep: float
    affine: Affine
    time: float  # from 1, noise, to 0, image: timestep / T where schedules are discrete

    @property
    def sigma(self) -> float:
        """The noise level of EDM, where x_t = x0 + sigma eps."""
        alpha, sigma = self.affine.alpha, self.affine.sigma
        return sigma / alpha if alpha else float("inf")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the network: its arguments by name, and which rows have the condition.

    `told` is None in a call for the prediction without; `first` names the latents' argument.
    """

    arguments: dict[str, Any]
    first: str
    rows: Rows
    told: slice | None
    doubled: bool
    place: Place

    @property
    def x(self) -> Any:
        """The latents as the network gets them: scaled, and maybe with more channels."""
        return self.arguments[self.first]

    @property
    def images(self) -> int:
        """How many images the call is about."""
        return self.rows.count // 2 if self.doubled else self.rows.count

    def half(self) -> dict[str, Any] | None:
        """The arguments of the told half alone; None if it is not sure where it is cut."""
        known = BY_ROW | {self.first}
        for name, value in self.arguments.items():
            if name not in known | SHARED and any(True for _ in self.rows.all(value)):
                return None
        part = self.told or slice(None)
        return {
            name: self.rows.pick(value, part) if name in known else value
            for name, value in self.arguments.items()
        }


def networks(pipe: Any) -> list[torch.nn.Module]:
    """The networks that a pipeline samples with; none where it is no diffusers pipeline."""
    for line in NAMES:
        found = [getattr(pipe, name, None) for name in line]
        modules = [part for part in found if isinstance(part, torch.nn.Module)]
        if modules:
            return modules
    return []


@contextmanager
def intercepted(
    pipe: Any, stand_in: Callable[[Callable[..., Any], str, dict[str, Any]], Any]
) -> Iterator[None]:
    """Let `stand_in(plain, first, arguments)` answer every call of the networks in the block."""
    with ExitStack() as stack:
        for module in networks(pipe):
            stack.enter_context(_replaced(module, stand_in))
        yield


@contextmanager
def _replaced(module: torch.nn.Module, stand_in: Callable[..., Any]) -> Iterator[None]:
    plain, before = module.forward, vars(module).get("forward")
    signature = inspect.signature(plain)
    first = next(iter(signature.parameters))

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, kind in signature.parameters.items():
            if kind.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        return stand_in(plain, first, given)

    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """The rows of each call of the pipeline's networks: their sum is the cost, in evaluations."""
    rows: list[int] = []

    def stand_in(plain: Callable[..., Any], first: str, arguments: dict[str, Any]) -> Any:
        rows.append(len(arguments[first]))
        return plain(**arguments)

    with intercepted(pipe, stand_in):
        yield rows


def read(pipe: Any, first: str, arguments: dict[str, Any], asked: int) -> Call:
    """What the network is asked, after `asked` calls at the same sampling step."""
    x = arguments[first]
    rows = Rows.of(x)
    doubled = _doubled(pipe, first, arguments, rows)
    told: slice | None = slice(None) if asked == 0 else None
    if doubled:
        half = rows.count // 2
        leads = any(cls.__name__.startswith(TOLD_FIRST) for cls in type(pipe).__mro__)
        told = slice(half) if leads else slice(half, None)
    name = "timestep" if "timestep" in arguments else "t"
    return Call(arguments, first, rows, told, doubled, coming(pipe.scheduler, arguments.get(name)))


def _doubled(pipe: Any, first: str, arguments: dict[str, Any], rows: Rows) -> bool:
    """Whether the batch holds every image twice, to be guided."""
    guided = getattr(pipe, "do_classifier_free_guidance", None)
    if guided is False or not rows.repeats(arguments[first]):
        return False
    # Two images may start from the same noise: then it is the condition that tells the halves.
    rest = {name: value for name, value in arguments.items() if name != first}
    return guided is True or not rows.repeats(rest)


def coming(scheduler: Any, given: Any) -> Place:
    """Where the coming call of `scheduler.step` is, while the network is asked for its part."""
    own = copy.copy(scheduler)  # to look must not begin anything
    timestep = _timestep(own, given)
    at = affine(own, timestep)
    discrete = getattr(own, "alphas_cumprod", None) is not None
    time = float(timestep) / own.config.num_train_timesteps if discrete else _share(at)
    return Place(float(timestep), at, time)


def _timestep(scheduler: Any, given: Any) -> Any:
    """Pipelines pass t in units of their own, but not where noise levels are looked up by t."""
    index = getattr(scheduler, "step_index", None)
    if index is None:
        index = getattr(scheduler, "begin_index", None)
    if index is None and not hasattr(scheduler, "step_index"):
        value = given.flatten()[0] if isinstance(given, Tensor) else given
        found = (scheduler.timesteps == value).nonzero()
        index = int(found[0]) if len(found) else None
    return scheduler.timesteps[index or 0]


def _share(at: Affine) -> float:
    """sigma / (alpha + sigma): the time of flow matching."""
    return at.sigma / (at.alpha + at.sigma) if at.sigma else 0.0
