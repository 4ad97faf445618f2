# SPDX-License-Identifier: Apache-2.0
"""summary.json: what every filter left, beside the figures of the paper."""

from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from shielded.data.buckets import Read
from shielded.data.counts import GROUPED, SIZED, Counts, Settings
from shielded.data.domain import Domain
from shielded.data.soft_labels import Group, filters

FORMAT = 1
SPLITS = ("validation", "test")
BINS = ((4, 5), (6, 10), (11, 20), (21, 30), (31, 40), (41, 50), (51, 128))  # of Table 3
SHARES = tuple(Fraction(step, 20) for step in range(6, 21))  # from 0.3 to 1
PAPER = {  # Section 4.1, Appendix E and Table 3 of arXiv 2410.06025
    "captions": {"validation": 554, "test": 5000},
    "images": {"test": 41596},
    "table 3": {
        "validation": [270, 174, 75, 20, 10, 3, 2],
        "test": [2600, 1485, 555, 219, 86, 32, 23],
    },
}


def summary(
    read: Read, counts: Counts, settings: Settings, groups: Iterable[Group], split: Callable
) -> dict[str, Any]:
    """All counts of a build; nothing in it depends on the machine or the time."""
    sizes: dict[str, Counter[int]] = {name: Counter() for name in SPLITS}
    repeated = 0
    for group in groups:
        sizes[split(group.caption)][len(group.urls)] += 1
        repeated += len(group.urls) - len(set(group.urls))
    names = [GROUPED, SIZED, *(name for name, _ in filters(settings.share, settings.domain))]
    return {
        "format": FORMAT,
        "settings": {
            "domain_share": float(settings.share),
            "domain": settings.domain.value,
            "seed": settings.seed,
        },
        "table": {
            "bytes": read.table[0],
            "lines": read.lines,
            "rows": sum(read.rows),
            "skipped": dict(sorted(read.skipped.items())),
            "first_skipped": [{"line": line, "reason": why} for line, why in read.first],
        },
        "left_after": [
            {"step": name, "captions": counts.captions[name], "images": counts.images[name]}
            for name in names
        ],
        "captions": {name: sizes[name].total() for name in SPLITS},
        "images": {name: sum(n * k for n, k in sizes[name].items()) for name in SPLITS},
        "repeated_urls": repeated,
        "table 3": {name: _binned(sizes[name]) for name in SPLITS},
        "captions_at_share": {
            kind.value: {f"{float(share):g}": counts.left_at(share, kind) for share in SHARES}
            for kind in Domain
        },
        "paper": PAPER,
    }


def _binned(sizes: Counter[int]) -> list[int]:
    """How many captions have 4 to 5 images, 6 to 10 and so on, as in Table 3."""
    return [sum(sizes[n] for n in range(low, high + 1)) for low, high in BINS]
