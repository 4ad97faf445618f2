# SPDX-License-Identifier: Apache-2.0
"""run.json: everything that a script, or a person a year later, wants to know of a run."""

import json
import math
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from shielded import __version__

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow")
FORMAT = 1  # raised when a reader of older files would misread newer ones


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the images depend on."""
    found = {"python": platform.python_version(), "shielded-diffusion": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def nearest_pair(points: Sequence[Any]) -> float | None:
    """Smallest L2 distance between two of the arrays; None for fewer than two."""
    import numpy as np

    if len(points) < 2:
        return None
    flat = np.stack([np.asarray(point, dtype=np.float64).ravel() for point in points])
    best = math.inf
    for index in range(len(flat) - 1):
        gap = flat[index + 1 :] - flat[index]
        best = min(best, float(np.sqrt((gap * gap).sum(axis=1).min())))
    return best


def dumps(run: dict[str, Any]) -> str:
    """Strict JSON: a number that is not finite becomes null, since JSON has no word for it."""
    return json.dumps(_finite(run), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
