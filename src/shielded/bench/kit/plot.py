# SPDX-License-Identifier: Apache-2.0
"""Plots of results, in the dress of the reports."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shielded.report.trace_plot import LIGHT, calm

__all__ = ["Curve", "heat", "panels"]

COLOURS = (
    "#ff8c00",
    "#2f6f9f",
    "#5a9a5a",
    "#8a63a8",
    "#b5534c",
    "#4d4d52",
    "#c2a33a",
    "#4aa6a6",
    "#e08fb2",
    "#9aa0a6",
)


@dataclass(frozen=True)
class Curve:
    """Points (x, y) of one method, joined in their order, and pale ones `beside` that are not.

    `loose` points are not joined either.
    """

    x: Sequence[float]
    y: Sequence[float]
    loose: bool = False
    beside: Sequence[tuple[float, float]] = ()


def panels(
    charts: Mapping[str, Mapping[str, Curve]],
    labels: Mapping[str, tuple[str, str]],
    falling: bool = False,
    log: Collection[str] = (),
) -> bytes:
    """PNG of charts side by side: title -> {method: curve}, and the names of each one's axes.

    `falling`: large x are on the left, as noise levels are while an image is made. `log` are the
    titles of charts whose y axis is logarithmic; zeros are left out there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(charts), 4.0), dpi=130, facecolor=LIGHT.paper)
    FigureCanvasAgg(figure)
    methods = list(dict.fromkeys(name for chart in charts.values() for name in chart))
    colour = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(methods)}
    grid = figure.subplots(1, len(charts), squeeze=False)[0]
    for axes, (title, chart) in zip(grid, charts.items(), strict=True):
        for name, curve in chart.items():
            line = "" if curve.loose else "-"
            axes.plot(
                curve.x,
                curve.y,
                line,
                marker="o",
                markersize=4,
                linewidth=1.4,
                color=colour[name],
                label=name,
            )
            pale = {"color": colour[name], "alpha": 0.35, "markersize": 3}
            axes.plot([x for x, _ in curve.beside], [y for _, y in curve.beside], "o", **pale)
        axes.set_title(title, loc="left", color=LIGHT.ink, fontsize=11)
        axes.set_xlabel(labels[title][0], color=LIGHT.ink, fontsize=9)
        axes.set_ylabel(labels[title][1], color=LIGHT.ink, fontsize=9)
        if title in log:
            axes.set_yscale("log", nonpositive="mask")
        if falling:
            axes.invert_xaxis()
        calm(axes, LIGHT)
    if len(methods) > 1:
        named = [axes.get_legend_handles_labels() for axes in grid]
        lines = {name: line for found in named for line, name in zip(*found, strict=True)}
        place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
        grid[-1].legend(lines.values(), lines.keys(), fontsize=8, frameon=False, **place)
    figure.tight_layout()
    return _png(figure)


def heat(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    scale: tuple[float, float] | None = None,
) -> bytes:
    """PNG of a table as squares with its numbers in them, orange for the largest of a column.

    With a `scale` (low, high) it is orange for what is high there, in every column.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    size = (1.9 + 1.0 * len(columns), 1.1 + 0.42 * len(rows))
    figure = Figure(figsize=size, dpi=130, facecolor=LIGHT.paper)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("shades", [LIGHT.paper, COLOURS[0]])
    for k in range(len(columns)):
        own = [line[k] for line in values]
        low, high = scale or (min(own), max(own))
        span = max(high - low, 1e-12)
        for n, value in enumerate(own):
            square = ((k, n), 1, 1)
            axes.add_patch(_rectangle(*square, shades((value - low) / span)))
            axes.text(k + 0.5, n + 0.5, f"{value:.3g}", ha="center", va="center", fontsize=9)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.set_xticks([k + 0.5 for k in range(len(columns))], columns, fontsize=9)
    axes.set_yticks([n + 0.5 for n in range(len(rows))], rows, fontsize=9)
    axes.tick_params(length=0, colors=LIGHT.ink)
    axes.xaxis.tick_top()
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(title, loc="left", color=LIGHT.ink, fontsize=11, pad=22)
    return _png(figure)


def _rectangle(corner: tuple[float, float], width: float, height: float, colour: object) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=colour, edgecolor=LIGHT.paper, linewidth=2)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.2)
    return buffer.getvalue()
