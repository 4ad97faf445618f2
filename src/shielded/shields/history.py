# SPDX-License-Identifier: Apache-2.0
"""The images of finished runs, remembered group by group."""

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shielded.distances import Rough
from shielded.errors import BadInput, ShapeMismatch
from shielded.shields.field import References
from shielded.shields.images import SCREEN, within
from shielded.shields.shields import same_group
from shielded.spaces.space import Space, name_of


class History:
    """Each image keeps away from the earlier images of its own group."""

    name = "history"

    def __init__(self, radius: float | None = None):
        self.radius = radius
        self.space: str | None = None  # where its images are measured; None is not known
        self.forget()

    def forget(self) -> None:
        """Empty the history."""
        self.latents: Tensor | None = None  # (K, ...) float32
        self.groups: list[Hashable] = []
        self._chosen: tuple[list[int], Tensor, Rough] | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one image; None while there is none."""
        return None if self.latents is None else tuple(self.latents.shape[1:])

    def __len__(self) -> int:
        return len(self.groups)

    def check(self, pipe: Any, space: Space | None = None) -> None:
        """Raise ShapeMismatch if the images were measured in another space."""
        name = name_of(space)
        if len(self) and self.space not in (None, name):
            raise ShapeMismatch(
                f"the history was measured in the space {self.space!r}, distances are now those of "
                f"{name!r}: call forget(), or keep one history a space."
            )
        self.space = name

    def remember(self, latents: Tensor, groups: Sequence[Hashable]) -> None:
        """Add finished images (N, ...) with their groups."""
        latents = latents.detach().to(torch.float32)
        if self.latents is not None:
            if latents.shape[1:] != self.latents.shape[1:]:
                raise ShapeMismatch(
                    f"history holds latents of shape {tuple(self.latents.shape[1:])}, this run "
                    f"returned {tuple(latents.shape[1:])}: call forget(), or keep one history a "
                    "model and image size."
                )
            latents = torch.cat([self.latents, latents.to(self.latents.device)])
        self.latents = latents
        self.groups = [*self.groups, *groups]
        self._chosen = None

    def references(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """The remembered images of the groups in this batch, or those that may be near."""
        mine, z, rough = self._of(groups, x)
        whole = len(mine) < SCREEN
        if not whole:
            keep = within(x, rough, radius).nonzero()[:, 0].tolist()
            mine, z, rough = [mine[k] for k in keep], z[keep], None
        return References(z.to(x.device), self._allowed(groups, mine, x), mine, whole, rough=rough)

    def closest(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """All remembered images of the groups in this batch."""
        mine, z, rough = self._of(groups, x)
        return References(z.to(x.device), self._allowed(groups, mine, x), mine, rough=rough)

    def _of(self, groups: Sequence[Hashable], x: Tensor) -> tuple[list[int], Tensor, Rough]:
        """Places of the images of these groups, and them (N, D): few in float64; kept till next."""
        if self.latents is None:
            return [], x[:0], Rough.of(x[:0])
        if self.latents.device != x.device:
            self.latents, self._chosen = self.latents.to(x.device), None
        present = set(groups)
        mine = [k for k, key in enumerate(self.groups) if key in present]
        if self._chosen is None or self._chosen[0] != mine:
            z = self.latents.flatten(1)[mine]
            z = z.to(torch.float64) if len(mine) < SCREEN else z
            self._chosen = mine, z, Rough.of(z)
        return self._chosen

    def _allowed(self, groups: Sequence[Hashable], mine: list[int], x: Tensor) -> Tensor:
        return same_group(tuple(groups), tuple(self.groups[k] for k in mine), x.device)

    def save(self, path: str | Path) -> None:
        """Write latents, groups and space as one safetensors file; groups must be JSON values."""
        from safetensors.torch import save_file

        try:
            groups = json.dumps(self.groups)
        except TypeError as error:
            raise BadInput(f"history groups cannot be saved ({error}): use strings.") from error
        latents = torch.zeros(0) if self.latents is None else self.latents.contiguous().cpu()
        path = Path(path)
        part = path.with_name(path.name + ".part")
        about = {"groups": groups} | ({} if self.space is None else {"space": self.space})
        save_file({"latents": latents}, part, metadata=about)
        part.replace(path)  # a reader sees the old file or the new one, never half of it

    def load(self, path: str | Path) -> None:
        """Replace the history by what `save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                latents, about = file.get_tensor("latents"), file.metadata() or {}
                groups = [_hashable(key) for key in json.loads(about["groups"])]
        except FileNotFoundError as error:
            raise BadInput(f"no history at {path}: save one there first.") from error
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            raise BadInput(f"{path} is not a saved history: {error}.") from error
        if len(groups) != len(latents) or not bool(latents.isfinite().all()):
            raise BadInput(f"{path} is damaged: save the history again.")
        self.forget()
        self.latents, self.groups = (latents if groups else None), groups
        self.space = about.get("space")

    def __repr__(self) -> str:
        return f"Shields.history({'' if self.radius is None else f'radius={self.radius}'})"


def _hashable(key: object) -> Hashable:
    """JSON turns tuples into lists: turn them back."""
    return tuple(_hashable(part) for part in key) if isinstance(key, list) else key  # type: ignore[return-value]
