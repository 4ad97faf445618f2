# SPDX-License-Identifier: Apache-2.0
"""Images that differ from each other and stay away from given ones, on any diffusion model.

from shielded import Shields, Spell

with Spell(Shields.batch(), radius=20.0).on(pipe) as run:
    images = pipe("a dog", num_images_per_prompt=8).images
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shielded.calibration import Calibration, calibrate
    from shielded.errors import ShieldedError
    from shielded.models import load
    from shielded.shields import Shields
    from shielded.shields.store import ProtectedSet
    from shielded.spell import Spell

__version__ = "0.1.0"
__all__ = [
    "Calibration",
    "ProtectedSet",
    "ShieldedError",
    "Shields",
    "Spell",
    "calibrate",
    "load",
]

_HOMES = {
    "Calibration": "shielded.calibration",
    "ProtectedSet": "shielded.shields.store",
    "Shields": "shielded.shields",
    "ShieldedError": "shielded.errors",
    "Spell": "shielded.spell",
    "calibrate": "shielded.calibration",
    "load": "shielded.models",
}


def __getattr__(name: str) -> Any:
    # Names are looked up when first used: `import shielded` costs nothing.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'shielded' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
