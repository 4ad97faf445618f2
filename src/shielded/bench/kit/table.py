# SPDX-License-Identifier: Apache-2.0
"""A table of results: printed as Markdown, kept as CSV and JSON, with its figures."""

from __future__ import annotations

import csv
import json
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass
class Table:
    """Rows of named values, with what was measured and where; `figures` are PNG by name."""

    name: str
    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)

    def add(self, **values: Any) -> None:
        """One more row."""
        self.rows.append(values)

    def markdown(self) -> str:
        """The title, the table and its notes."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [f"**{self.title}**", "", _line(names), _line(["---"] * len(names))]
        lines += [_line([_text(row.get(name, "")) for name in names]) for row in self.rows]
        notes = [f"{note}  " for note in [*self.notes, machine()]]
        plots = [f"![{name}]({self.name}-{name}.png)" for name in self.figures]
        return "\n".join([*lines, "", *notes, *(part for plot in plots for part in ("", plot))])

    def write(self, folder: str | Path) -> None:
        """NAME.md, NAME.csv, NAME.json and NAME-FIGURE.png in `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(self.markdown() + "\n")
        for name, figure in self.figures.items():
            (folder / f"{self.name}-{name}.png").write_bytes(figure)
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with (folder / f"{self.name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        content = {"title": self.title, "rows": self.rows, "notes": [*self.notes, machine()]}
        (folder / f"{self.name}.json").write_text(json.dumps(content, indent=1))


def machine() -> str:
    """Where it ran and with what."""
    import torch

    parts = [f"{name} {version(name)}" for name in ("torch", "diffusers")]
    where = f"{platform.machine()}, {torch.get_num_threads()} threads, Python"
    return f"Measured on {where} {platform.python_version()}, {', '.join(parts)}."


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
