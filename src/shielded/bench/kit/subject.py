# SPDX-License-Identifier: Apache-2.0
"""What is measured: a model, what it is asked for, and what its images are held against."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shielded.bench.kit.precision import compute_in_bfloat16
from shielded.bench.kit.reference import Reference
from shielded.bench.kit.sample import finished
from shielded.errors import BadInput
from shielded.metrics import SmallNet, class_score
from shielded.models import load, prompts
from shielded.samplers.network import networks
from shielded.spaces.decode import decode

__all__ = ["Subject", "subject"]

Extractor = Callable[[Tensor], Tensor]


@dataclass
class Subject:
    """A pipeline, its conditions (prompts or names of classes), and features of its images.

    `call` are settings of the pipeline's call, `real` what it is held against, if anything.
    Where it is known what those show, metrics are taken for each condition and averaged, as in the
    paper, else over all at once.
    """

    name: str
    pipe: Any
    conditions: Sequence[str]
    extract: Extractor
    real: Reference | None = None
    call: dict[str, Any] = field(default_factory=dict)
    precision: str = "float32"  # in which the network computes
    agreement: Callable[[Tensor, str], float] | None = None  # pictures, what was asked for: 0 to 1

    def look(self, latents: Tensor) -> Tensor:
        """The pictures (N, C, H, W) uint8 that latents decode to."""
        parts = [decode(self.pipe, part) for part in latents.split(16)]
        return finished(torch.cat(parts))

    def features(self, pictures: Tensor) -> Tensor:
        """(N, F) of pictures (N, C, H, W) uint8."""
        return torch.cat([self.extract(x.float() / 127.5 - 1) for x in pictures.split(256)])


def subject(
    model: str,
    data: Path | None = None,
    conditions: Sequence[str] | None = None,
    pipe: Any = None,
    extract: Extractor | None = None,
    steps: int | None = None,
    split: str = "test",
    autocast: bool = False,
) -> Subject:
    """A bundled model by its name, or `model` as the name of `pipe`.

    `data` is a JSON file {condition: [files of real images]}; without it bundled models are held
    against the features of real images that come with them (of the `split` "test", or
    "validation" to choose settings by), others against nothing. With `autocast` the network
    computes in bfloat16, the rest as before.
    """
    real = None
    if data is not None:
        text = json.loads(data.read_text(encoding="utf-8"))
        if not isinstance(text, dict):
            raise BadInput(f"{data} must hold one JSON object: condition -> files of real images.")
        conditions = list(text) if conditions is None else conditions
    if pipe is None:
        pipe = load(model)
        pipe.set_progress_bar_config(disable=True)
        extract = extract or SmallNet(model.removeprefix("tiny-"))
        conditions = conditions or prompts(model)["bench"]
        real = Reference.bundled(model, split) if data is None else None
    if extract is None or not conditions:
        raise BadInput("another model needs conditions (--real) and features (--extractor).")
    call = {} if steps is None else {"num_inference_steps": steps}
    made = Subject(model, pipe, tuple(conditions), extract, real, call=call)
    if autocast:
        made.precision = "bfloat16"
        for network in networks(pipe):
            compute_in_bfloat16(network)
    if data is not None:
        made.real = Reference.of_files(text, data.parent, made.features)
    if isinstance(extract, SmallNet) and set(made.conditions) <= set(extract.classes):
        made.agreement = _told_by(extract)
    return made


def _told_by(net: SmallNet) -> Callable[[Tensor, str], float]:
    """How probable a classifier thinks it that pictures show what was asked for."""

    def agreement(pictures: Tensor, condition: str) -> float:
        classes = torch.full((len(pictures),), net.classes.index(condition))
        return class_score(net.probabilities(pictures.float() / 127.5 - 1), classes)

    return agreement
