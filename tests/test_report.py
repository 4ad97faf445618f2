# SPDX-License-Identifier: Apache-2.0
"""The pictures and the page: what they show, and that they need nothing else."""

import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from shielded.report.page import page
from shielded.report.pair import Pair
from shielded.report.run_json import dumps, nearest_pair, versions
from shielded.report.series import series, share_acted
from shielded.report.sheet import ORANGE, RED, cell_size, contact_sheet, fit
from shielded.report.trace_plot import DARK, trace_plot
from shielded.trace import Certificate, Record


def pair(k, intervened=False, clear=True, prompt="sword", size=32, plain=True, landed=False):
    """One seed; its plain image is grey k, its shielded one is another grey if SPELL acted."""
    certificate = Certificate(
        generation=0,
        index=k,
        group=prompt,
        source="batch",
        reference=k + 1,
        distance=30.0 + k,
        radius=25.0,
        clear=clear,
        landed=landed,
        intervened=intervened,
    ).to_dict() | {"nearest": f"seed {k + 1}"}
    before = Image.new("RGB", (size, size), (k, k, k))
    after = Image.new("RGB", (size, size), (200, k, k)) if intervened else before
    return Pair(k, k, prompt, after, certificate, before if plain else None, not intervened)


def records(ratios):
    """One generation; ratios (T, B)."""
    return [
        Record(
            generation=0,
            call=t,
            timestep=1000.0 * (1 - t / len(ratios)),
            noise_level=1 - t / len(ratios),
            active=torch.tensor(row).gt(0).long(),
            delta=torch.tensor(row) * 20,
            ratio=torch.tensor(row),
        )
        for t, row in enumerate(ratios)
    ]


def count(image, colour):
    want = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return int((np.asarray(image.convert("RGB")) == want).all(axis=-1).sum())


def run_of(pairs, **changes):
    run = {
        "command": "shielded generate sword -n 3",
        "prompts": list(dict.fromkeys(p.prompt for p in pairs)),
        "seed": 0,
        "num_images": 3,
        "versions": versions(),
        "model": {"name": "m", "pipeline": "P", "scheduler": "S"},
        "settings": {"radius": 25.0, "protected": [], "window": [1.0, 0.0], "history": None},
        "summary": {
            "images": len(pairs),
            "moved": sum(p.intervened for p in pairs),
            "identical": sum(p.identical for p in pairs),
            "not_clear": sum(not p.clear for p in pairs),
            "nearest_pair_plain": 1.5,
            "nearest_pair_shielded": 26.0,
            "seconds": {"total": 3.0},
        },
    }
    return run | changes


def test_the_sheet_frames_only_what_spell_moved():
    untouched = contact_sheet([pair(k) for k in range(3)])
    moved = contact_sheet([pair(0), pair(1, intervened=True), pair(2)])
    inside = contact_sheet([pair(0), pair(1, intervened=True, clear=False), pair(2)])
    legend = count(untouched, ORANGE)  # the legend shows the colour, too
    assert 0 < legend < 200
    assert count(moved, ORANGE) > legend + 500
    assert count(moved, RED) == 0
    assert count(inside, RED) > 500
    assert count(inside, ORANGE) == legend


def test_the_sheet_puts_a_seed_in_one_column_plain_above_shielded():
    sheet = np.asarray(contact_sheet([pair(k, intervened=True) for k in range(1, 4)]))
    for k in range(1, 4):
        rows_plain, columns_plain = np.where((sheet == (k, k, k)).all(axis=-1))
        rows, columns = np.where((sheet == (200, k, k)).all(axis=-1))
        assert (columns_plain.min(), columns_plain.max()) == (columns.min(), columns.max())
        assert rows_plain.max() < rows.min()


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((32, 32), (160, 160)),
        ((100, 50), (100, 50)),
        ((512, 512), (160, 160)),
        ((1024, 512), (160, 80)),
    ],
)
def test_small_images_grow_by_whole_factors_and_large_ones_fit(size, shown):
    assert cell_size(Image.new("RGB", size)) == shown


def test_enlarging_keeps_pixels_as_they_are():
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = np.asarray(fit(Image.fromarray(noise), (40, 40)))
    assert (large == noise.repeat(5, axis=0).repeat(5, axis=1)).all()


def test_a_sheet_without_plain_images_and_with_a_long_prompt_stays_on_its_page():
    wide = contact_sheet([pair(0, plain=False, prompt="a very long prompt " * 40)])
    assert wide.width <= 1000
    edge = np.asarray(wide)[:, -20:]
    assert (edge == 255).all()
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])


def test_series_stack_records_by_generation():
    first, second = records([[0.3, 0.0], [0.1, 0.0]]), records([[0.5], [0.0]])
    second = [
        Record(1, r.call, r.timestep, r.noise_level, r.active, r.delta, r.ratio) for r in second
    ]
    made = series(first + second)
    assert [one.ratio.shape for one in made] == [(2, 2), (2, 1)]
    share = share_acted(made, np.array([1.0, 0.5, 0.25]))
    np.testing.assert_allclose(share, [2 / 3, 1 / 3, 1 / 3])
    assert made[0].to_dict()["acted"] == [[True, False], [True, False]]


@pytest.mark.parametrize(
    "ratios",
    [
        [[0.3, 0.2], [0.1, 0.0], [0.0, 0.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[1e-9, 4.0], [float("inf"), 0.0], [float("nan"), 1e-3]],
    ],
    ids=["linear", "nothing happened", "wide range and a vanishing score"],
)
def test_the_trace_plot_draws_whatever_happened(ratios):
    drawn = Image.open(io.BytesIO(trace_plot(series(records(ratios)))))
    orange = (np.asarray(drawn.convert("HSV"), dtype=int) - (23, 255, 255)) / (12, 200, 120)
    share = (np.abs(orange) < 1).all(axis=-1).mean()
    happened = any(r > 0 for row in ratios for r in row)
    assert (share > 1e-3) == happened
    dark = Image.open(io.BytesIO(trace_plot(series(records(ratios)), DARK))).convert("L")
    assert np.median(np.asarray(dark)) < 60 < 200 < np.median(np.asarray(drawn.convert("L")))


class Sources(HTMLParser):
    """Collects everything that a browser would fetch, and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.fetched, self.stack, self.cells = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "source", "link", "br"):
            self.stack.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "href", "data", "poster"):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("td", "dd", "h1", "h3"):
            self.cells.append(data.strip())


def test_the_page_needs_no_network_and_no_other_file():
    pairs = [pair(0), pair(1, intervened=True, size=300), pair(2, clear=False)]
    text = page(run_of(pairs), pairs, b"\x89PNG", b"\x89PNG")
    found = Sources()
    found.feed(text)
    assert found.stack == []
    assert len(found.fetched) >= 6
    assert all(value.startswith("data:image/") for value in found.fetched)
    assert not re.search(r"@import|url\(|<script|https?://", text)


def test_the_page_says_of_each_image_what_its_certificate_says():
    pairs = [pair(0), pair(1, intervened=True), pair(2, intervened=True, clear=False)]
    found = Sources()
    found.feed(page(run_of(pairs), pairs, b"", b""))
    start = found.cells.index("not touched")
    told = [cell for cell in found.cells[start:] if cell]
    assert told[:5] == ["not touched", "seed 1", "30.00", "25.00", "clear"]
    assert told[6:11] == ["moved", "seed 2", "31.00", "25.00", "clear"]
    assert told[12:17] == ["moved", "seed 3", "32.00", "25.00", "not clear"]


def test_the_page_escapes_what_a_prompt_holds():
    pairs = [pair(0, prompt='<img src=x> & "quotes"')]
    text = page(run_of(pairs), pairs, b"", b"")
    assert "<img src=x>" not in text
    assert "&lt;img src=x&gt; &amp;" in text


def test_several_prompts_have_a_section_each():
    pairs = [pair(0), pair(1), pair(0, prompt="red potion")]
    text = page(run_of(pairs), pairs, b"", b"")
    assert "<h3>sword</h3>" in text
    assert "<h3>red potion</h3>" in text
    assert contact_sheet(pairs).height > contact_sheet(pairs[:2]).height


def test_run_json_is_strict_json():
    text = dumps({"distance": float("inf"), "rows": [(1.0, float("nan"))], 1: "ü"})
    assert json.loads(text) == {"distance": None, "rows": [[1.0, None]], "1": "ü"}


def test_nearest_pair_is_the_smallest_distance():
    points = np.random.default_rng(0).normal(size=(6, 2, 3))
    slow = min(np.linalg.norm(points[i] - points[j]) for i in range(6) for j in range(6) if i != j)
    assert nearest_pair(list(points)) == pytest.approx(slow)
    assert nearest_pair([points[0]]) is None
    line = [np.array([float(x)]) for x in (0, 5, 7)]
    assert nearest_pair(line) == min(float(b[0] - a[0]) for a, b in pairwise(line))


def test_the_sheet_draws_letters_beyond_ascii():
    drawn = {
        word: contact_sheet([pair(0, prompt=word)]).crop((40, 50, 300, 95)).tobytes()
        for word in ("ü", "ß", "я")
    }
    assert len(set(drawn.values())) == 3  # a font without them draws the same box for each
