# SPDX-License-Identifier: Apache-2.0
"""`shielded protect build --ray`: the same build, on all that Ray has."""

import logging
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any

from shielded import cluster

if TYPE_CHECKING:
    from shielded.ingest import Built


def settled(device: str | None, dtype: str | None) -> tuple[str, str]:
    """The device and precision for every actor, as this process would choose them for itself."""
    from shielded.cli.load import pick_device, pick_dtype

    cluster.engine()
    device = pick_device(device)
    return device, str(pick_dtype(dtype, device)).removeprefix("torch.")


def on_ray(model: str, device: str, dtype: str) -> "Callable[..., Built]":
    """What does the work of `ingest.build`, with a pipeline in each actor instead of the one."""
    from shielded.ingest.ray_build import ray_build

    def build(target: Any, pipe: Any, source: Any, batch: int, **how: Any) -> "Built":
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        load = partial(_pipe, model, device, dtype)
        with redirect_stdout(sys.stderr):  # Ray tells there of processes that have died
            return ray_build(target, load, source, batch, gpu=device.startswith("cuda"), **how)

    return build


def _pipe(model: str, device: str, dtype: str) -> Any:
    """The pipeline, in an actor."""
    from shielded.cli.load import load_pipe, quiet

    quiet()
    return load_pipe(model, device, dtype, None)[0]
