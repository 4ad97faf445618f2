# SPDX-License-Identifier: Apache-2.0
"""Rows of what a network takes and gives: tensors, or lists of one tensor a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Rows", "blend", "copied", "remade"]


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows a call has, and whether its lists hold one tensor a row."""

    count: int
    lists: bool = False

    @classmethod
    def of(cls, x: Tensor | list[Tensor]) -> Rows:
        """Of the latents that a network is given."""
        return cls(len(x), isinstance(x, list))

    def change(self, value: Any, change: Callable[[Any], Any]) -> Any:
        """The same structure, with everything that has a row for each changed."""
        if self._are(value):
            return change(value)
        return _inside(value, lambda part: self.change(part, change))

    def all(self, value: Any) -> Iterator[Any]:
        """Everything in it that has a row for each."""
        if self._are(value):
            yield value
        elif isinstance(value, Mapping | list | tuple):
            for part in value.values() if isinstance(value, Mapping) else value:
                yield from self.all(part)

    def pick(self, value: Any, part: slice) -> Any:
        """Those rows of everything."""
        return self.change(value, lambda rows: rows[part])

    def twice(self, value: Any) -> Any:
        """The rows of everything two times, one after the other."""
        return self.change(
            value,
            lambda rows: rows + copied(rows) if isinstance(rows, list) else torch.cat([rows, rows]),
        )

    def repeats(self, value: Any) -> bool:
        """Whether the second half of all rows is the first once more."""
        half = self.count // 2
        return self.count == 2 * half and all(
            all(torch.equal(a, b) for a, b in zip(rows[:half], rows[half:], strict=True))
            for rows in self.all(value)
        )

    def _are(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return value.ndim > 0 and len(value) == self.count
        if self.lists and isinstance(value, list) and len(value) == self.count:
            return all(isinstance(row, Tensor) for row in value)
        return False


def copied(value: Any) -> Any:
    """Tensors of its own, so that what is done to one does not reach the other."""
    return value.clone() if isinstance(value, Tensor) else _inside(value, copied)


def blend(a: Any, b: Any, weight: float) -> Any:
    """a + weight (b - a) of every pair of tensors."""
    if isinstance(a, Tensor):
        return torch.lerp(a, b, weight)
    if isinstance(a, Mapping):
        return remade(a, {name: blend(part, b[name], weight) for name, part in a.items()})
    if isinstance(a, list | tuple):
        return type(a)(blend(x, y, weight) for x, y in zip(a, b, strict=True))
    return a


def remade(value: Mapping[str, Any], parts: dict[str, Any]) -> Any:
    """A mapping with other parts; the outputs of diffusers are dataclasses, too."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **parts)
    return type(value)(**parts)


def _inside(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return remade(value, {name: change(part) for name, part in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(change(part) for part in value)
    return value
