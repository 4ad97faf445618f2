# SPDX-License-Identifier: Apache-2.0
"""One seed, seen twice: as the model gives it and as SPELL gives it."""

from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Pair:
    """The two images of one seed, with the certificate of the shielded one.

    `plain` is None where only the shielded image was made; `certificate` is the dictionary of
    `Certificate.to_dict()`; `identical` says whether the two images agree in every byte.
    """

    index: int
    seed: int
    prompt: str
    shielded: Image.Image
    certificate: dict[str, Any]
    plain: Image.Image | None = None
    identical: bool | None = None

    @property
    def clear(self) -> bool:
        """Whether the shielded image lies outside every shield."""
        return bool(self.certificate["clear"])

    @property
    def intervened(self) -> bool:
        """Whether SPELL moved this image, while sampling or on landing."""
        return bool(self.certificate["intervened"])
