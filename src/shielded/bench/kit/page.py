# SPDX-License-Identifier: Apache-2.0
"""The page of results, put together from the tables in a folder and what was read out of them.

    python -m shielded.bench.kit.page docs/results

writes docs/results.md: for each bench what it asks, its command, a reading (NAME.reading.md, by
hand), the table and its figures; then its tables of other models (NAME-MODEL.md), if any.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

__all__ = ["ORDER", "page"]

ORDER = (
    "diversity",
    "sprites",
    "radius",
    "pareto",
    "guidance",
    "sparsity",
    "one_by_one",
    "grid",
    "overlap",
    "prediction",
    "dpp",
    "takedown",
    "protection",
    "protected",
    "unwanted",
    "set_size",
    "scale",
    "overhead",
    "spaces",
    "copies",
    "nudging",
    "semantic_cost",
)
HEAD = """# Results

This page is generated from the tables beside it (`python -m shielded.bench.kit.page docs/results`).
Every table comes from one command, `shielded bench NAME`, which writes it as Markdown, CSV and JSON
with its figures into a folder (`--out`). `--smoke` runs a size that ends in seconds; the tests run
all of them that way. With `--autocast` the network computes in bfloat16, which here takes half the
time: 192 plain images of tiny-fashion from the same seeds then score the same, within 0.006 of
precision and 0.002 of recall. The machine and the versions stand under each table.
"""


def page(folder: Path) -> str:
    """The text of the page for the tables NAME.md in `folder`."""
    found = [name for name in ORDER if (folder / f"{name}.md").exists()]
    return "\n".join([HEAD, *(_section(folder, name) for name in found)])


def _section(folder: Path, name: str) -> str:
    asks = (import_module(f"shielded.bench.{name}").__doc__ or "").strip()
    first, _, rest = asks.partition("\n")
    command = f"    shielded bench {name.replace('_', '-')}"
    reading = folder / f"{name}.reading.md"
    told = reading.read_text(encoding="utf-8").strip("\n") if reading.exists() else command
    if command not in told:
        told = f"{command}\n\n{told}"
    others = sorted(folder.glob(f"{name}-*.md"))
    tables = [path.read_text(encoding="utf-8").strip() for path in (folder / f"{name}.md", *others)]
    tables = [table.replace(f"]({name}-", f"]({folder.name}/{name}-") for table in tables]
    parts = [f"## {first.rstrip('.')}", *([rest.strip()] if rest else []), told, *tables]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    into = Path(sys.argv[1])
    into.with_suffix(".md").write_text(page(into), encoding="utf-8")
