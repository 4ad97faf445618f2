# SPDX-License-Identifier: Apache-2.0
"""CADS, condition-annealed sampling (Sadat et al. 2023, arXiv 2310.17347)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from shielded.errors import BadInput, NotApplicable
from shielded.methods.inside import Ask, InsideMethod, InsideRun
from shielded.samplers.network import Call, networks

__all__ = ["CADS", "anneal"]

# Arguments of diffusers' networks that hold the condition y; pictures and sizes are not of it.
CONDITIONS = (
    "encoder_hidden_states",
    "encoder_hidden_states_2",
    "encoder_hidden_states_t5",
    "pooled_projections",
    "cap_feats",
    "class_labels",
)
ADDED = ("text_embeds", "image_embeds")  # of added_cond_kwargs
LABELS = ("class_embedding", "class_embedder")  # parts that turn a class into a vector


class CADS(InsideMethod):
    """Noise on the condition, much of it early and none late in sampling.

    gamma(t) = 1 for t <= tau1, 0 for t >= tau2, (tau2 - t) / (tau2 - tau1) between, and

        y^ = sqrt(gamma) y + noise_scale sqrt(1 - gamma) n,   n ~ N(0, I), new at each call
        y_rescaled = (y^ - mean(y^)) / std(y^) std(y) + mean(y)
        y_final = mix y_rescaled + (1 - mix) y^

    for each image on its own. Only the prediction with the condition is told y_final; the one
    without stays as it is. Of text models y is what the network attends to and the pooled
    vector, of class models the embedding of the class.

    The time t runs from 1 to 0: timestep / T of a discrete schedule, else
    sigma / (alpha + sigma), which is t in flow matching.

    Args:
        tau1, tau2: times between which the condition comes in; tau1 = tau2 = 1 switches CADS off.
        noise_scale: s, the standard deviation of the noise. The defaults of these three are those
            of Stable Diffusion.
        mix: psi, 1 keeps the moments of y.
        seed: of the noise. Each image has its own stream, whatever the size of its batch.

    Raises:
        BadInput: for values that cannot be used.
        NotApplicable: in the block, for a pipeline whose network gets no condition.

    Example:
        >>> CADS(noise_scale=0.1)
        CADS(tau1=0.6, tau2=0.9, noise_scale=0.1, mix=1.0)
    """

    needs_guidance = False

    def __init__(
        self,
        tau1: float = 0.6,
        tau2: float = 0.9,
        noise_scale: float = 0.25,
        mix: float = 1.0,
        seed: int = 0,
    ):
        if not 0 <= tau1 <= tau2 <= 1:
            raise BadInput(f"tau1, tau2 are {tau1}, {tau2}: they must have 0 <= tau1 <= tau2 <= 1.")
        if not (math.isfinite(noise_scale) and noise_scale > 0):
            raise BadInput(
                f"noise_scale is {noise_scale}: it must be above 0; tau1=1, tau2=1 switches CADS "
                "off."
            )
        if not 0 <= mix <= 1:
            raise BadInput(f"mix is {mix}: it must be between 0 and 1.")
        self.tau1, self.tau2 = float(tau1), float(tau2)
        self.noise_scale, self.mix, self.seed = float(noise_scale), float(mix), seed

    def gamma(self, time: float) -> float:
        """The annealing schedule, from 0 (noise alone) to 1 (the condition as it is)."""
        if time <= self.tau1:
            return 1.0
        if time >= self.tau2:
            return 0.0
        return (self.tau2 - time) / (self.tau2 - self.tau1)

    def start(self, pipe: Any, groups: Sequence[Hashable] | None) -> _CADSRun:
        """The run of a block, with its streams of noise."""
        return _CADSRun(self, pipe, groups)

    def answer(self, call: Call, ask: Ask, run: _CADSRun) -> tuple[Any, float]:
        """The network's answer to a noisy condition."""
        gamma = self.gamma(call.place.time)
        if call.told is None:
            return ask(call.arguments), gamma
        found = _conditions(call)
        if not found:
            raise NotApplicable(
                f"{run.name} gives its network no condition (no text, no class): there is nothing "
                "for CADS to put noise on."
            )
        if gamma == 1:
            return ask(call.arguments), gamma
        run.drawn = {}

        def change(name: str, value: Any) -> Any:
            return call.rows.change(value, lambda rows: self._rows(call, rows, gamma, run, name))

        arguments = dict(call.arguments)
        for name in (name for name in CONDITIONS if name in found):
            arguments[name] = change(name, arguments[name])
        for name in (name for name in ADDED if name in found):
            added = arguments["added_cond_kwargs"]
            arguments["added_cond_kwargs"] = added | {name: change(name, added[name])}
        embedders = run.embedders if "class" in found else []
        with _changed(embedders, lambda rows: change("class", rows)):
            return ask(arguments), gamma

    def _rows(self, call: Call, rows: Any, gamma: float, run: _CADSRun, name: str) -> Any:
        part = call.told or slice(None)
        told = rows[part]
        noise = run.noise(name, told)
        new = [self._final(y[None], gamma, n[None]) for y, n in zip(told, noise, strict=True)]
        if isinstance(rows, list):
            changed = list(rows)
            changed[part] = [y[0] for y in new]
            return changed
        changed = rows.clone()
        changed[part] = torch.cat(new)
        return changed

    def _final(self, y: Tensor, gamma: float, noise: Tensor) -> Tensor:
        return anneal(y.float(), gamma, noise, self.noise_scale, self.mix).to(y.dtype)

    def __repr__(self) -> str:
        return (
            f"CADS(tau1={self.tau1}, tau2={self.tau2}, noise_scale={self.noise_scale}, "
            f"mix={self.mix})"
        )


class _CADSRun(InsideRun):
    """A run with a stream of noise for each image of its batches."""

    def __init__(self, method: CADS, pipe: Any, groups: Sequence[Hashable] | None):
        super().__init__(method, pipe, groups)
        self.seed = method.seed
        self.streams: list[torch.Generator] = []
        self.drawn: dict[Hashable, list[Tensor]] = {}  # at this call, by condition and shapes
        self.embedders = [
            part
            for network in networks(pipe)
            for name, part in network.named_modules()
            if name.rpartition(".")[2] in LABELS
        ]

    def noise(self, name: str, like: Sequence[Tensor]) -> list[Tensor]:
        """Standard normal noise of each row's shape, once a call: blocks may share a condition."""
        while len(self.streams) < len(like):
            text = f"CADS {self.seed} {len(self.streams)}"  # unlike the seeds of the images
            digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
            self.streams.append(torch.Generator().manual_seed(int.from_bytes(digest, "big")))
        key = (name, *(tuple(y.shape) for y in like))
        if key not in self.drawn:
            self.drawn[key] = [
                torch.randn(y.shape, generator=stream).to(y.device)
                for y, stream in zip(like, self.streams, strict=False)
            ]
        return self.drawn[key]


def anneal(y: Tensor, gamma: float, noise: Tensor, noise_scale: float, mix: float) -> Tensor:
    """y_final (B, ...) of conditions y and noise of the same shape; moments are of each row."""
    every = tuple(range(1, y.ndim))
    noisy = math.sqrt(gamma) * y + noise_scale * math.sqrt(1 - gamma) * noise
    spread = noisy.std(every, correction=0, keepdim=True).clamp(min=1e-12)
    unit = (noisy - noisy.mean(every, keepdim=True)) / spread
    rescaled = unit * y.std(every, correction=0, keepdim=True) + y.mean(every, keepdim=True)
    return mix * rescaled + (1 - mix) * noisy


def _conditions(call: Call) -> set[str]:
    """The names under which this call holds conditions; "class" for classes by number."""
    found = {
        name
        for name in CONDITIONS
        if any(_float(rows) for rows in call.rows.all(call.arguments.get(name)))
    }
    added = call.arguments.get("added_cond_kwargs") or {}
    found |= {
        name for name in ADDED if any(_float(rows) for rows in call.rows.all(added.get(name)))
    }
    labels = call.arguments.get("class_labels")
    return found | ({"class"} if labels is not None and not _float(labels) else set())


def _float(rows: Any) -> bool:
    first = rows[0] if isinstance(rows, list) else rows
    return isinstance(first, Tensor) and first.is_floating_point()


@contextmanager
def _changed(parts: list[torch.nn.Module], change: Callable[[Any], Any]) -> Iterator[None]:
    """Let the parts give `change` of what they give."""
    handles = [part.register_forward_hook(lambda _, __, out: change(out)) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
