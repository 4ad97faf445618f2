# SPDX-License-Identifier: Apache-2.0
"""The progress bar of a stream whose length nobody knows: share, count, rate, time left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stream_bar(title: str, silent: bool) -> Iterator[Callable[..., None]]:
    """Yield a function (share passed, images passed, title=None) that moves the bar."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=40, complete_style="dark_orange", finished_style="dark_orange"),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[images]:,} images"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=silent or not sys.stderr.isatty(),
    ) as bar:
        task, start = bar.add_task(title, total=1.0, images=0, rate=0.0), time.monotonic()

        def move(share: float, images: int, title: str | None = None) -> None:
            rate = images / max(time.monotonic() - start, 1e-3)
            bar.update(task, completed=share, images=images, rate=rate, description=title)

        yield move
