# SPDX-License-Identifier: Apache-2.0
"""set.json: what all latents of a set share."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shielded.errors import BadInput, Damaged
from shielded.shields.shields import check_radius

FILE = "set.json"
FORMAT = 1
DTYPES = ("float16", "float32")


@dataclass(frozen=True, slots=True)
class Header:
    """Shape of one latent, stored dtype, default radius, fingerprint of what made the latents."""

    shape: tuple[int, ...]
    dtype: str
    radius: float | None
    fingerprint: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        whole = all(isinstance(n, int) and n > 0 for n in self.shape)
        if not self.shape or not whole:
            raise BadInput(f"shape is {self.shape}: give positive whole numbers, as (4, 64, 64).")
        if self.dtype not in DTYPES:
            raise BadInput(f"dtype is {self.dtype!r}: choose one of {', '.join(DTYPES)}.")
        if not isinstance(self.fingerprint, dict):
            raise BadInput("a fingerprint is a dict of JSON values.")
        check_radius(self.radius)

    @property
    def dim(self) -> int:
        """Numbers in one latent."""
        return math.prod(self.shape)

    def write(self, folder: Path) -> None:
        """Write set.json into a folder that nobody reads yet."""
        try:
            text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadInput(f"the fingerprint is not made of JSON values: {error}.") from error
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, root: Path) -> "Header":
        """The header of a set, or one sentence: no set there, a newer format, damaged."""
        try:
            values = json.loads((root / FILE).read_text(encoding="utf-8"))
            number = int(values.pop("format"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadInput(
                f"there is no protected set at {root}: make one with `shielded protect build`."
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _damaged(root) from error
        if number > FORMAT:
            raise BadInput(
                f"{root} has format {number}, this version of shielded-diffusion reads up to "
                f"{FORMAT}: upgrade with pip install -U shielded-diffusion."
            )
        try:
            return cls(**{**values, "shape": tuple(values["shape"])})
        except (BadInput, KeyError, TypeError) as error:
            raise _damaged(root) from error


def _damaged(root: Path) -> Damaged:
    return Damaged(f"{root / FILE} is damaged: restore it from a copy, or build the set again.")
