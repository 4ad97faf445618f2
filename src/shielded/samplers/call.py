# SPDX-License-Identifier: Apache-2.0
"""The pipeline's own call, for methods that draw more than they return."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shielded.errors import NotApplicable

__all__ = ["called"]


@contextmanager
def called(
    pipe: Any, stand_in: Callable[[Callable[..., Any], dict[str, Any]], Any]
) -> Iterator[None]:
    """Let `stand_in(plain, arguments)` answer `pipe(...)` in the block; `plain` is the pipe.

    The pipeline stays the same object; its class is a transparent subclass meanwhile.
    """
    cls = type(pipe)
    if not callable(pipe):
        raise NotApplicable(f"{cls.__name__} cannot be called: pass a diffusers pipeline.")
    signature = inspect.signature(cls.__call__)

    @functools.wraps(cls.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        given.pop(next(iter(signature.parameters)))
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        return stand_in(functools.partial(cls.__call__, self), given)

    members = {
        "__call__": __call__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    pipe.__class__ = type(cls.__name__, (cls,), members)
    try:
        yield
    finally:
        pipe.__class__ = cls
