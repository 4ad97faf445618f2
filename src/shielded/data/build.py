# SPDX-License-Identifier: Apache-2.0
"""From CC12M's table to the soft-label split of Appendix E, in bounded memory."""

import heapq
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shielded.data import split as files
from shielded.data.buckets import BUCKETS, groups, paths, spread
from shielded.data.counts import GROUPED, SIZED, Counts, Settings
from shielded.data.soft_labels import MOST, Group, right_size
from shielded.data.summary import summary
from shielded.errors import BadInput

CAPTIONS, IMAGES, SUMMARY, WORK = "captions.jsonl", "images.jsonl", "summary.json", "cc12m.work"

Tell = Callable[[str, float, int], None]  # what is done, its share, rows


@dataclass(frozen=True, slots=True)
class Built:
    """The files of a split, and all counts as they stand in summary.json."""

    captions: Path
    images: Path
    summary: dict[str, Any]


def build_cc12m(
    table: Path,
    out: Path,
    settings: Settings | None = None,
    tell: Tell = lambda title, share, rows: None,
) -> Built:
    """Write captions.jsonl, images.jsonl and, as the last, summary.json to the folder `out`.

    Each file appears whole. The same rows and settings give the same bytes. What is read of the
    table is kept in a folder of `out` until the end, so that a run that was stopped goes on.
    Raises BadInput for a file that is not CC12M's table.
    """
    settings = settings or Settings()
    if not table.is_file():
        raise BadInput(f"there is no file {table}: check the path.")
    work = out / WORK
    read = spread(table, work, lambda share, rows: tell("read", share, rows))
    rows, counts = sum(read.rows), Counts()
    for number, path in enumerate(paths(work)):
        tell("filter", number / BUCKETS, rows)
        _keep(path, read.rows[number], settings, counts)
    (out / SUMMARY).unlink(missing_ok=True)  # of an earlier run, whose files are replaced now

    def left() -> Iterator[Group]:
        return _merged([_kept(path) for path in paths(work)])

    split = files.splitter(left(), settings.seed)
    digests = {
        CAPTIONS: files.whole(out / CAPTIONS, files.captions(left, split)),
        IMAGES: files.whole(out / IMAGES, files.images(left, split)),
    }
    told = {**summary(read, counts, settings, left(), split), "sha256": digests}
    files.whole(out / SUMMARY, [json.dumps(told, indent=2) + "\n"])
    tell("filter", 1.0, rows)
    shutil.rmtree(work)
    return Built(out / CAPTIONS, out / IMAGES, told)


def _keep(path: Path, rows: int, settings: Settings, counts: Counts) -> None:
    """Filter the captions of a bucket, and write those that are left, sorted, beside it."""
    left = []
    for caption, urls, images in groups(path, rows, MOST):
        counts.add(GROUPED, images)
        if right_size(images):
            counts.add(SIZED, images)
            group = Group(caption.decode(), tuple(url.decode() for url in urls))
            if counts.passes(group, settings):
                left.append((group.caption, group.urls))
    with open(_kept(path), "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in sorted(left))


def _kept(path: Path) -> Path:
    return path.with_suffix(".kept")


def _merged(kept: list[Path]) -> Iterator[Group]:
    """The captions of all buckets, sorted, with only one of each bucket in memory."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open(path)) for path in kept]
        for caption, urls in heapq.merge(*(map(json.loads, file) for file in opened)):
            yield Group(caption, tuple(urls))
