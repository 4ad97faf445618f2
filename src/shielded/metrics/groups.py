# SPDX-License-Identifier: Apache-2.0
"""Averages over prompts or classes, and the columns of SPELL's first table."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from shielded.errors import BadInput
from shielded.metrics.frechet import frechet
from shielded.metrics.manifold import prdc
from shielded.metrics.vendi import vendi

Groups = Sequence[Hashable] | Tensor  # one label an image: its prompt, its class


def by_group(metric: Callable[..., Any], *sets: tuple[Tensor, Groups]) -> Any:
    """The mean over groups of what `metric` says of each group: every group counts the same.

    Each set is (features (N, F), one label an image); `metric` gets that many tensors, e.g.
    `by_group(prdc, (real, classes), (made, asked_for))`, `by_group(vendi, (made, prompts))`.
    Numbers, tuples and mappings of numbers are averaged entry by entry.

    Raises:
        BadInput: for a group that is not in every set.
    """
    parts = [_split(features, groups) for features, groups in sets]
    names = {name: None for part in parts for name in part}
    for name in names:
        if not all(name in part for part in parts):
            raise BadInput(f"The group {name!r} is not in every set: leave it out, or add images.")
    return _mean([metric(*(part[name] for part in parts)) for name in names])


def table_1(
    real: Tensor, made: Tensor, real_groups: Groups, made_groups: Groups, k: int = 5
) -> dict[str, float]:
    """Recall, Vendi score, coverage, precision, density and Frechet distance as SPELL takes them.

    The first five are measured for each class or prompt and averaged (section 4.1), the Frechet
    distance over all images at once. The paper does not name the k of its balls; it has to be
    smaller than every group.
    """
    found = by_group(lambda r, m: prdc(r, m, k), (real, real_groups), (made, made_groups))
    return {
        "recall": found.recall,
        "vendi": by_group(vendi, (made, made_groups)),
        "coverage": found.coverage,
        "precision": found.precision,
        "density": found.density,
        "frechet": frechet(real, made),
    }


def _split(features: Tensor, groups: Groups) -> dict[Hashable, Tensor]:
    labels = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if len(labels) != len(features) or not labels:
        raise BadInput(f"{len(features)} images need one group each, not {len(labels)}.")
    places: dict[Hashable, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    return {
        label: features[torch.tensor(at, device=features.device)] for label, at in places.items()
    }


def _mean(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: fmean(value[key] for value in values) for key in first}
    if isinstance(first, tuple):
        means = [fmean(column) for column in zip(*values, strict=True)]
        kind: Any = type(first)
        return kind(*means) if hasattr(first, "_fields") else tuple(means)
    return fmean(values)
