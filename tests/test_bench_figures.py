# SPDX-License-Identifier: Apache-2.0
"""The benches of the paper's tables and figures: their parts in closed form, their smoke sizes."""

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from shielded.bench import (
    copies,
    diversity,
    dpp,
    grid,
    guidance,
    nudging,
    one_by_one,
    pareto,
    prediction,
    protection,
    radius,
    semantic_cost,
    set_size,
    spaces,
    sparsity,
    unwanted,
)
from shielded.bench.kit import kdpp, paper
from shielded.bench.kit.alterations import ALTERATIONS
from shielded.bench.kit.contender import PLAIN, spell
from shielded.bench.kit.gallery import Drawn, Gallery
from shielded.bench.kit.page import ORDER, page
from shielded.bench.kit.reference import Reference
from shielded.bench.kit.scores import scores, spread
from shielded.bench.kit.subject import Subject, subject
from shielded.cli.app import app
from shielded.errors import BadInput
from shielded.metrics import Pixels, SmallNet
from shielded.models import load
from shielded.spaces import Colour, Semantic

CONDITIONS = ("book", "sword")


@pytest.fixture(scope="module")
def pipe():
    pipe = load("tiny-sprites")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def one(pipe):
    """tiny-sprites at few steps, held against made features of two conditions."""
    draw = torch.Generator().manual_seed(0)
    some = torch.randn(3072, 16, generator=draw) / 16

    def extract(images):
        return Pixels()(images) @ some

    shown = [c for c in CONDITIONS for _ in range(12)]
    real = Reference(extract(torch.rand(24, 3, 32, 32, generator=draw)), shown)
    call = {"num_inference_steps": 3}
    return Subject("tiny-sprites", pipe, CONDITIONS, extract, real, call=call)


# Determinantal processes


def points(seed: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "likeness", [kdpp.kernel(points(1)), torch.diag(torch.tensor([4.0, 1, 1, 0.5, 0.1]))]
)
def test_a_k_dpp_draws_subsets_as_their_determinants_say(likeness):
    draw = torch.Generator().manual_seed(1)
    subsets = list(combinations(range(5), 2))
    chance = torch.tensor([float(torch.linalg.det(likeness[list(s)][:, list(s)])) for s in subsets])
    chance = (chance / chance.sum()).double()
    count = 4000
    seen = dict.fromkeys(subsets, 0)
    for _ in range(count):
        seen[tuple(sorted(kdpp.sample(likeness, 2, draw).tolist()))] += 1
    found = torch.tensor([seen[s] / count for s in subsets]).double()
    off = (found - chance) / (chance * (1 - chance) / count).sqrt()
    assert float(off.abs().max()) < 4.5


def test_a_k_dpp_takes_all_of_k_points_and_never_equals():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(0)
    assert sorted(kdpp.sample(kdpp.kernel(x), 6, draw).tolist()) == list(range(6))
    twice = torch.cat([x, x])
    for _ in range(50):
        some = kdpp.sample(kdpp.kernel(twice), 4, draw) % 6
        assert len(some.unique()) == 4
    with pytest.raises(BadInput, match="draw more"):
        kdpp.sample(kdpp.kernel(x), 7, draw)


def test_the_greedy_choice_makes_each_determinant_largest():
    likeness = kdpp.kernel(torch.randn(9, 3, generator=torch.Generator().manual_seed(2)))
    found = kdpp.best(likeness, 5).tolist()
    for k in range(1, 5):
        dets = {}
        for other in set(range(9)) - set(found[:k]):
            rows = [*found[:k], other]
            dets[other] = float(torch.linalg.det(likeness[rows][:, rows]))
        assert max(dets, key=dets.__getitem__) == found[k]


# Parts


def test_the_papers_table_says_what_its_text_says():
    """The rises of SD3's Vendi score that section 4.2 names; EDMv2's share in Table 2."""
    vendi = paper.COLUMNS.index("vendi")
    for model, rise in (("SD3-Medium", 0.26), ("SD3-Medium-Class", 0.37)):
        before, after = (row[vendi][0] for row in paper.TABLE_1[model])
        assert after / before - 1 == pytest.approx(rise, abs=0.01)
    assert paper.TABLE_2[0][1] == pytest.approx(0.076)
    assert paper.TABLE_2[-1][-1] / paper.TABLE_2[0][-1] == pytest.approx(5.6, abs=0.05)
    assert all(len(way) == len(paper.COLUMNS) for ways in paper.TABLE_1.values() for way in ways)


def test_front_rows_are_those_that_none_beats():
    draw = np.random.default_rng(0)
    names = sorted({axis for axes in pareto.PLANES.values() for axis in axes})
    rows = [
        dict.fromkeys(names, 0.0) | {n: float(draw.integers(6)) for n in names} for _ in range(30)
    ]
    pareto.marked(rows)
    for number, axes in enumerate(pareto.PLANES.values(), 1):
        points = {tuple(row[a] for a in axes) for row in rows}
        for row in rows:
            x, y = (row[a] for a in axes)
            beaten = any((u > x and v >= y) or (u >= x and v > y) for u, v in points)
            assert (str(number) in row["front"].split()) is not beaten


def test_what_x0_foretells():
    """Two images end on each other, a third far away; halfway all three are together."""
    image = torch.tensor([[0.0, 0], [0, 1], [10, 0], [0, 10]]).double()
    x0 = torch.stack([image * 0, image])
    error, seen, right, ends = prediction.follow(x0, image)
    assert seen.tolist() == [6, 1]
    assert right.tolist() == [1, 1]
    assert ends.tolist() == [1, 1]
    unit = torch.pdist(image).median()
    assert error.tolist() == pytest.approx([float(image.norm(dim=1).mean() / unit), 0])


def test_a_row_of_sparsity():
    ratio = torch.tensor([[0.5, 0.02, 0, 0], [0.1, 0, 0.1, 0], [0, 0, 0, 0], [0, 0, 0, 0.2]])
    level = torch.tensor([1.0, 0.7, 0.4, 0.1]).double()
    told = sparsity.row(ratio, ratio > 0, level)
    from_noise = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    assert sparsity.row(0.1 * ratio[:2], from_noise, level)["ever moved"] == "50%"
    assert told["ever moved"] == "75%"
    assert told["from level 0.5 on"] == "50%"  # the second and the last image
    assert told["at the last call"] == "25%"
    assert told["stopped for good"] == "67%"  # the second stops and begins again
    assert told["largest"] == pytest.approx(0.5)
    assert told["below 5%"] == "20%"


def test_spread():
    told = spread([{"a": 1.0}, {"a": 3.0}])
    assert told["a"] == (2, pytest.approx(math.sqrt(2)))
    assert spread([{"a": 1.0}])["a"] == (1, 0)


def test_real_images_from_files(tmp_path):
    for name, level in (("a.png", 0), ("b.png", 255)):
        Image.new("RGB", (4, 4), (level,) * 3).save(tmp_path / name)
    (tmp_path / "real.json").write_text(json.dumps({"black": ["a.png"], "white": ["b.png"]}))
    made = subject("any", tmp_path / "real.json", pipe=object(), extract=Pixels())
    assert made.conditions == ("black", "white")
    assert made.real.by_condition
    assert made.real.features.mean(1).tolist() == [1, 0]  # ink
    assert made.real.of(["white"]).features.shape == (1, 48)
    (tmp_path / "real.json").write_text(json.dumps({"black": ["c.png"]}))
    with pytest.raises(BadInput, match="no file"):
        subject("any", tmp_path / "real.json", pipe=object(), extract=Pixels())
    (tmp_path / "real.json").write_text("[]")
    with pytest.raises(BadInput, match="JSON object"):
        subject("any", tmp_path / "real.json", pipe=object(), extract=Pixels())


@pytest.mark.parametrize("split", ["test", "validation"])
def test_bundled_references_are_of_the_bundled_network(split):
    """Its own head must read from them what the pictures show."""
    held, net = Reference.bundled("tiny-fashion", split), SmallNet("fashion")
    told = net.net.head(held.features).argmax(1).tolist()
    right = [net.classes[k] == shown for k, shown in zip(told, held.conditions, strict=True)]
    assert sum(right) / len(right) > 0.85
    assert len(set(held.conditions)) == 10
    assert Reference.bundled("tiny-sprites").features.shape == (1957, 128)
    assert Reference.bundled("no-such-model") is None


# The gallery


def test_the_gallery_draws_once_and_shields_nothing_at_radius_0(one, tmp_path, monkeypatch):
    gallery = Gallery(one, 4, tmp_path)
    plain = gallery.draw(PLAIN)
    assert plain.pictures.shape == (2, 4, 3, 32, 32)
    assert plain.evaluations == 2 * 4 * 3 * 2  # conditions, images, steps, with and without prompt
    assert (plain.unit > 0).all()
    assert plain.clear == 0  # nobody has certified them
    none = gallery.draw(spell(0.0))
    assert torch.equal(none.pictures, plain.pictures)
    assert not none.ratio.any()
    far = gallery.draw(spell(0.9))
    assert far.clear == 8
    apart = [torch.pdist(x.double().flatten(1) / 127.5).min() for x in far.pictures]
    assert all(d >= 0.9 * u * (1 - 1e-5) for d, u in zip(apart, far.unit, strict=True))
    monkeypatch.setattr("shielded.bench.kit.gallery.draw", None)
    again = Gallery(one, 4, tmp_path).draw(spell(0.9))
    assert torch.equal(again.pictures, far.pictures)
    assert again.seconds == far.seconds


def test_scores_are_those_of_the_metrics(one, tmp_path):
    drawn = Gallery(one, 8, tmp_path).draw(PLAIN)
    told = scores(one, drawn)
    assert {"recall", "vendi", "coverage", "precision", "density", "frechet"} <= set(told)
    one.real = None
    assert set(scores(one, drawn)) == {"vendi", "similarity"}


# Smoke


@pytest.mark.parametrize(
    "bench",
    [radius, pareto, sparsity, one_by_one, guidance, prediction, dpp, grid, spaces, copies],
)
def test_smoke(bench, one, tmp_path):
    if bench is pareto:
        one.agreement = lambda pictures, condition: float(pictures.float().mean()) / 255
    table = bench.run(smoke=True, one=one)
    assert table.rows
    assert table.figures or bench is dpp
    table.write(tmp_path)
    for name in table.figures:
        with Image.open(tmp_path / f"{table.name}-{name}.png") as picture:
            assert min(picture.size) > 200
    assert table.title in (tmp_path / f"{table.name}.md").read_text()


def test_diversity_smoke(one):
    table = diversity.run(smoke=True, one=one)
    plain, shielded, *papers = table.rows
    assert plain["images"] == "plain"
    vendi = [float(row["vendi"].split()[0]) for row in (plain, shielded)]
    assert vendi[1] > vendi[0]
    assert len(papers) == 12


def test_protection_smoke(one):
    pytest.importorskip("lance")
    pytest.importorskip("faiss")
    table = protection.run(smoke=True, one=one)
    plain, *ways = [row for row in table.rows if "paper" not in row["search"]]
    assert float(plain["inside"].rstrip("%")) > 0
    assert [row["search"] for row in ways][-1] == "SPELL, exact screen"
    assert ways[-1]["inside"] == "0.00%"
    assert all(row[f"own ms an image, {n} at once"] > 0 for row in ways for n in (2, 4))
    with pytest.raises(BadInput, match="--data"):
        protection.run(one=one)


def test_the_tiles_of_tiny_sprites_are_blown_up_to_a_size(monkeypatch, one):
    tiles = torch.arange(2 * 3 * 32 * 32).remainder(251).byte().reshape(2, 3, 32, 32)
    monkeypatch.setattr("shielded.bench.kit.training_set.trained", lambda data: tiles)
    sprites = replace(one, name="tiny-sprites")
    count, pictures = protection.protected(sprites, Path("tiles.npz"), 5)
    assert (count, len(pictures(1, 5))) == (5, 4)
    assert torch.equal(pictures(0, 2), tiles)
    assert not torch.equal(pictures(2, 4), tiles)
    assert protection.protected(sprites, Path("tiles.npz"), None)[0] == 2
    with pytest.raises(BadInput, match="fewer"):
        protection.protected(sprites, Path("tiles.npz"), 10**9)
    with pytest.raises(BadInput, match="--size"):
        protection.protected(one, None, 5)


def test_set_size_smoke(one):
    pytest.importorskip("lance")
    table = set_size.run(smoke=True, one=one)
    assert [row["pictures"] for row in table.rows] == [4, 8]
    assert all(row["own ms a batch"] > 0 for row in table.rows)
    with pytest.raises(BadInput, match="--data"):
        set_size.run(one=one)


# The command


def told(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *words])
    return result.exit_code, result.output


def test_a_figure_by_command(tmp_path):
    code, text = told("prediction", "--smoke", "--model", "tiny-sprites", "--out", str(tmp_path))
    assert code == 0, text
    assert {path.name for path in tmp_path.iterdir()} == {
        "prediction.md", "prediction.csv", "prediction.json", "prediction-curves.png"
    }  # fmt: skip


def test_a_network_in_half_the_bits_is_the_same_network():
    """What it returns is as wide as before, and off by no more than bfloat16 is: 2^-8 a number."""
    wide, half = (subject("tiny-fashion", autocast=on).pipe.unet for on in (False, True))
    size, draw = wide.config.sample_size, torch.Generator().manual_seed(0)
    x = torch.randn(2, wide.config.in_channels, size, size, generator=draw)
    told = {"class_labels": torch.tensor([0, 9])}
    with torch.no_grad():
        right = wide(x, 500, **told).sample
        for found in (half(x, 500, **told).sample, half(x, 500, **told, return_dict=False)[0]):
            assert found.dtype is torch.float32
            assert 0 < float((found - right).norm()) < 2**-5 * float(right.norm())
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_a_table_says_that_its_network_had_half_the_bits(tmp_path):
    words = ["prediction", "--smoke", "--model", "tiny-sprites", "--autocast"]
    code, text = told(*words, "--out", str(tmp_path))
    assert code == 0, text
    assert "bfloat16" in text
    assert "bfloat16" in (tmp_path / "prediction.md").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["overlap", "--model", "tiny-sprites"], "has its own model"),
        (["overlap", "--autocast"], "has its own model"),
        (["overlap", "--runs", "3"], "--runs belongs to `shielded bench diversity`"),
        (["radius", "--data", "no-such-file.npz"], "--data belongs to"),
        (["protection", "--data", "no-such-file.npz"], "no file"),
        (["radius", "--model", "someone/some-model"], "--real"),
        (["radius", "--model", "tiny-sprites", "--extractor", "eyes"], "no feature extractor"),
        (["radius", "--model", "tiny-sprites", "--extractor", "resnet56"], "needs its weights"),
    ],
)
def test_what_a_bench_is_not_told(words, says, tmp_path):
    code, text = told(*words, "--smoke", "--out", str(tmp_path))
    assert code == 2, text
    assert says in " ".join(text.split())
    assert not list(tmp_path.iterdir())


def test_the_page_of_results_is_what_its_tables_make():
    results = Path(__file__).parents[1] / "docs" / "results"
    text = results.with_suffix(".md").read_text(encoding="utf-8")
    assert text == page(results)
    for file in results.glob("*.json"):
        assert file.stem.partition("-")[0] in ORDER
        assert file.with_suffix(".md").read_text(encoding="utf-8").splitlines()[0] in text


def test_tables_of_other_models_stand_under_the_first(tmp_path):
    for name in ("protection", "protection-tiny-sprites", "scale"):
        (tmp_path / f"{name}.md").write_text(f"table {name}\n\n![a]({name}-a.png)\n")
    (tmp_path / "protection.reading.md").write_text("the reading")
    text = page(tmp_path)
    order = ("the reading", "table protection\n", "table protection-tiny-sprites", "table scale")
    assert sorted(order, key=text.index) == list(order)
    assert text.count("the reading") == text.count("table scale") == 1
    assert f"]({tmp_path.name}/protection-tiny-sprites-a.png)" in text


# Spaces


def test_alterations_are_pictures_and_do_what_they_say():
    draw = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        x = torch.rand(2, channels, 32, 32, generator=draw) * 2 - 1
        made = {name: change(x) for name, change in ALTERATIONS.items()}
        assert all(y.shape == x.shape for y in made.values())
        assert torch.equal(made["as it is"], x)
        assert torch.equal(made["mirrored"].flip(3), x)
        assert torch.equal(made["shifted"][:, :, 4:, 4:], x[:, :, :-4, :-4])
        flat = torch.full_like(x, 0.3)
        for name in ("shifted", "cropped", "blurred"):
            assert torch.allclose(ALTERATIONS[name](flat), flat, atol=1e-6), name
        assert float((made["noise"] - x).std()) == pytest.approx(0.1, rel=0.1)
        assert float((made["all at once"] - x).abs().mean()) > 0.05


def test_how_far_apart_images_are_is_the_mean_over_pairs_and_conditions():
    pictures = torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8)
    pictures[0, 1, 0], pictures[1] = 255, 17
    none = torch.zeros(0)
    images = Drawn(pictures, none, none, none, none, 0.0, 0, 0)
    # In colour, red against black is 2 apart: pairs 2, 0, 2; the other condition is all alike.
    assert spaces.apart(Semantic(Colour()), images) == pytest.approx((4 / 3 + 0) / 2)


def test_a_copy_that_nothing_was_done_to_is_caught_everywhere(one):
    table = copies.run(one=one, images=6)
    assert [row["as it is"] for row in table.rows] == ["100.0%"] * len(table.rows)
    mirrored = {row["space"]: row["mirrored"] for row in table.rows}
    assert mirrored["colour"] == "100.0%", "a mirrored picture has the same colours"
    assert table.figures["caught"].startswith(b"\x89PNG")


def test_semantic_cost_smoke():
    table = semantic_cost.run(smoke=True)
    (sprites, *decoders) = table.rows
    assert float(sprites["inactive, every 1"].rstrip("%")) > 0
    assert {"inactive, every 4", "active, every 1"} <= set(sprites)
    assert all(min(row["with backward ms"], row["forward ms"]) > 0 for row in decoders)


def test_spell_alone_is_never_inside(one):
    table = unwanted.run(one=one, images=6)
    share = {row["images"]: row["inside"] for row in table.rows}
    (spell,) = [name for name in share if name.startswith("SPELL")]
    assert share[spell] == "0.00%"
    assert float(share["plain"].rstrip("%")) > 0
    assert len(share) == 8


def test_nudging_lets_no_copy_pass(one):
    one.call = {"num_inference_steps": 6}
    table = nudging.run(smoke=True, one=one)
    plain, nudged, shielded = table.rows
    assert plain["inside before"] == nudged["inside before"]
    assert nudged["let pass inside"] == shielded["let pass inside"] == 0
    if plain["inside before"] != "0.0%":
        assert nudged["evaluations"] > plain["evaluations"]
