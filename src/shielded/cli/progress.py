# SPDX-License-Identifier: Apache-2.0
"""One progress bar for all long work: silent for scripts and for pipes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Ticks:
    """Stands in for the bar that a pipeline draws itself: counts its steps on ours."""

    def __init__(self, bar: Any, task: Any, iterable: Any = None, total: int | None = None):
        self.bar, self.task, self.iterable = bar, task, iterable
        if total is None and iterable is not None and hasattr(iterable, "__len__"):
            total = len(iterable)
        self.total = total or 1

    def __enter__(self) -> "Ticks":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()

    def update(self, count: float = 1) -> None:
        """The pipeline made `count` steps: that is the same share of one batch."""
        self.bar.advance(self.task, count / self.total)


class Progress:
    """A bar with one unit a batch, advanced by the steps inside the pipeline."""

    def __init__(self, silent: bool):
        self.silent = silent or not sys.stderr.isatty()

    @contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """Show `title` while something takes its time without telling how long."""
        if self.silent:
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(title, spinner_style="dark_orange"):
            yield

    @contextmanager
    def over(self, pipe: Any, title: str, batches: int) -> Iterator[Any]:
        """Show `title` while the pipeline makes so many batches; the pipeline's own bar is off."""
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        with Bar(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=40, complete_style="dark_orange", finished_style="dark_orange"),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=self.silent,
        ) as bar:
            task = bar.add_task(title, total=batches)
            with _replaced(pipe, lambda *args, **kwargs: Ticks(bar, task, *args, **kwargs)):
                yield lambda finished: bar.update(task, completed=finished)


@contextmanager
def _replaced(pipe: Any, progress_bar: Any) -> Iterator[None]:
    had = "progress_bar" in vars(pipe)
    before = vars(pipe).get("progress_bar")
    pipe.progress_bar = progress_bar
    try:
        yield
    finally:
        if had:
            pipe.progress_bar = before
        else:
            del pipe.progress_bar
