# SPDX-License-Identifier: Apache-2.0
"""The records of a trace as arrays, one series for each generation."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

# T sampling calls, B images


@dataclass(frozen=True)
class Series:
    """What SPELL did in one generation: noise level (T,) from 1 to 0, |delta| / |score| (T, B)."""

    noise_level: np.ndarray
    ratio: np.ndarray
    acted: np.ndarray  # (T, B) bool: the call moved the image

    def to_dict(self) -> dict[str, Any]:
        """Lists for run.json; a ratio that is not finite (a vanishing score) becomes None."""
        ratio = [[float(r) if np.isfinite(r) else None for r in row] for row in self.ratio]
        return {
            "noise_level": [float(level) for level in self.noise_level],
            "ratio": ratio,
            "acted": self.acted.astype(bool).tolist(),
        }


def series(records: Iterable[Any]) -> list[Series]:
    """Stack the records of `run.trace.records`, which come in order, by generation."""
    found = []
    for _, group in groupby(records, key=lambda record: record.generation):
        calls = list(group)
        found.append(
            Series(
                noise_level=np.array([float(call.noise_level) for call in calls]),
                ratio=np.array([call.ratio.tolist() for call in calls], dtype=float),
                acted=np.array([[d > 0 for d in call.delta.tolist()] for call in calls]),
            )
        )
    return found


def share_acted(all_series: Iterable[Series], levels: np.ndarray) -> np.ndarray:
    """Share of all images that SPELL still moves at each noise level."""
    total, moved = 0, np.zeros(len(levels))
    for one in all_series:
        order = np.argsort(one.noise_level, kind="stable")
        counts = one.acted.sum(axis=1)[order]
        moved += np.interp(levels, one.noise_level[order], counts)
        total += one.acted.shape[1]
    return moved / max(total, 1)
