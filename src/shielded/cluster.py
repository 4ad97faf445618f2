# SPDX-License-Identifier: Apache-2.0
"""Ray, for work that one process is too few for: its module, a quiet start, its errors."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shielded.errors import Lost, MissingExtra


def engine() -> Any:
    """The module `ray`, or MissingExtra."""
    try:
        import ray
        import ray.data  # which needs more packages than Ray alone
    except ImportError as error:
        raise MissingExtra(
            "work on several processes needs Ray: pip install shielded-diffusion[ray]."
        ) from error
    return ray


def started() -> Any:
    """The module `ray`, connected: to what runs already, else to what RAY_ADDRESS or Ray finds.

    Failing that Ray is started on this machine, without dashboard and usage statistics.
    """
    ray = engine()
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            with warnings.catch_warnings():  # Lance warns of forks; Ray's become other programs
                warnings.filterwarnings("ignore", message="lance is not fork-safe")
                ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise Lost(
                f"Ray could not be started or reached ({_brief(error)}): see that RAY_ADDRESS is "
                "right and the machine has room."
            ) from error
    return ray


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Raise what went wrong in the work itself as if it were done here, and Lost for all else."""
    errors = engine().exceptions
    try:
        yield
    except errors.RayTaskError as error:
        raise _cause(error) from error
    except errors.RayError as error:
        raise Lost(
            f"{what} was lost ({_brief(error)}): see that each machine has the same packages and "
            "memory left, then run it again."
        ) from error


def _cause(error: BaseException) -> BaseException:
    """The error of the work, which Ray may have wrapped more than once."""
    while getattr(error, "cause", None) is not None:
        error = error.cause  # type: ignore[attr-defined]
    return error


def _brief(error: BaseException) -> str:
    """One line of what Ray says: its last one tells why an actor died."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # without colours
    lines = text.splitlines() or [type(error).__name__]
    return lines[-1 if "died" in lines[0] else 0].strip()[:200].rstrip(". ")
