# SPDX-License-Identifier: Apache-2.0
"""Spaces and siblings on the command line: what is saved is as far apart as was said."""

import csv
import io
import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from shielded.cli import space as spaces_by_name
from shielded.cli.app import app
from shielded.cli.methods import METHODS
from shielded.spaces import Network, Semantic
from shielded.spaces.tiny import Block

SPRITES = ["generate", "sword", "--seed", 3]


def shielded(*arguments, code=0):
    """Run the command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def complaint(*arguments):
    """The one sentence on stderr about bad input."""
    result = shielded(*arguments, code=2)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def run_of(out):
    return json.loads((Path(out) / "run.json").read_text())


def colours(folder):
    """The mean colour of every saved image, in [-1, 1], by its place in the run."""
    files = sorted(Path(folder).glob("*.png"))
    return [np.asarray(Image.open(p), float).mean((0, 1)) / 127.5 - 1 for p in files]


def nearest(points):
    return min(np.linalg.norm(a - b) for a, b in combinations(points, 2))


def same(one, other):
    """Whether two folders hold the same images, byte by byte."""
    names = [sorted(p.name for p in Path(folder).glob("*.png")) for folder in (one, other)]
    assert names[0] == names[1] != []
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in names[0])


def test_in_colour_the_saved_images_are_an_automatic_radius_apart(tmp_path):
    """Two batches; the certificates, the summary and the radius by brute force on the files."""
    out = tmp_path / "o"
    generate = [*SPRITES, "-n", 6, "--batch-size", 4, "--steps", 6, "--space", "colour"]
    result = shielded(*generate, "--out", out)
    run = run_of(out)
    radius = run["settings"]["radius"]
    assert (run["settings"]["space"], run["calibration"]["space"]) == ("colour", "colour")
    assert "all clear" in result.stdout
    assert f"radius {radius:.4g} in colour space" in result.stdout

    after, before = colours(out / "shielded"), colours(out / "plain")
    assert nearest(before) < radius  # so there was something to do
    assert nearest(after) >= radius * (1 - 1e-5)
    assert run["summary"]["nearest_pair_plain_in_space"] == pytest.approx(nearest(before), rel=1e-4)
    assert run["summary"]["nearest_pair_shielded_in_space"] == pytest.approx(
        nearest(after), rel=1e-4
    )
    assert run["summary"]["nearest_pair_shielded"] > 1  # that in 8-bit colour, pixel by pixel
    for k, image in enumerate(run["images"]):
        known = [j for j in range(6) if j != k and (j < k or j // 4 == k // 4)]
        distances = {f"seed {3 + j}": np.linalg.norm(after[k] - after[j]) for j in known}
        certificate = image["certificate"]
        assert certificate["clear"]
        assert certificate["distance"] == pytest.approx(min(distances.values()), rel=1e-5)
        assert distances[certificate["nearest"]] == pytest.approx(certificate["distance"], rel=1e-5)
        assert image["identical"] == (not certificate["intervened"])
    page = (out / "report.html").read_text()
    assert "units of the colour space" in page
    assert f"radius {radius:.4g} in colour space" in page

    calibrate = ["calibrate", "sword", "--seed", 3, "--steps", 6, "--space", "colour"]
    told = json.loads(shielded(*calibrate, "--json").stdout)
    assert (told["radius"], told["shape"]) == (radius, [3])
    assert f"radius {radius:.4g} in colour space" in shielded(*calibrate).stdout
    latents = json.loads(shielded(*calibrate[:-2], "-n", 4, "--json").stdout)
    assert latents["space"] == "latent"
    assert latents["radius"] > 5 * radius  # not what was remembered for colour


def test_every_so_many_steps_alone_are_looked_at(rgb, tmp_path):
    generate = ["generate", "a dog", "-n", 3, "--model", rgb, "--steps", 6, "--no-plain"]
    far = ["--space", "colour", "--radius", 0.5, "--every", 4]
    shielded(*generate, *far, "--out", tmp_path)
    (trace,) = run_of(tmp_path)["trace"]
    acted = [any(row) for row in trace["acted"]]
    assert acted[0]
    assert not any(acted[k] for k in range(6) if k % 4)


# Sets of features


def picture(seed, side=8):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def store(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def source(tmp_path):
    """Five pictures, each of another brightness."""
    for k in range(5):
        store(tmp_path / f"pictures/{k}.png", picture(k) // 5 + 50 * k)
    return tmp_path / "pictures"


@pytest.fixture
def made(tmp_path, source, rgb):
    """Their colours, as a set."""
    pytest.importorskip("lance", reason="needs the extra [protect]")
    build = ["protect", "build", tmp_path / "set", source, "--model", rgb, "--radius", 0.1]
    shielded(*build, "--space", "colour")
    return tmp_path / "set"


def test_a_set_of_features_is_built_added_to_and_looked_at(tmp_path, made, source, rgb):
    store(source / "z.png", picture(9) // 5 + 120)
    shielded("protect", "add", made, source)
    about = json.loads(shielded("protect", "info", made, "--json").stdout)
    assert (about["images"], about["shape"], about["dtype"]) == (6, [3], "float32")
    assert (about["fingerprint"]["embedding"], about["fingerprint"]["spec"]) == ("colour", "colour")
    assert "space    colour" in shielded("protect", "info", made).stdout
    from shielded.shields.store import ProtectedSet

    a = ProtectedSet.open(made)
    rows = np.concatenate([part.rows for part in a.parts()])
    assert np.allclose(a.take(rows), np.stack(colours(source)), atol=1e-7)
    again = ["protect", "build", made, source, "--model", rgb]
    assert "6 already there" in shielded(*again).stdout  # the set knows its space
    other = complaint(*again, "--space", "style")
    assert "embedding colour against style" in other
    assert "embedding colour against none" in complaint(*again, "--space", "latent")
    assert "does not fit" in complaint("protect", "add", made, source, "--space", "location")
    new = ["protect", "build", tmp_path / "new", source, "--model", rgb, "--space", "colour"]
    pytest.importorskip("ray", reason="needs the extra [ray]")
    assert "leave --ray or --space out" in complaint(*new, "--ray")


def test_check_measures_in_the_space_of_each_set(tmp_path, made, source, rgb):
    checked, out = tmp_path / "made", tmp_path / "out"
    shuffled = np.random.default_rng(0).permutation((picture(2) // 5 + 100).reshape(-1, 3))
    store(checked / "shuffled.png", shuffled.reshape(8, 8, 3))  # the same colours, elsewhere
    store(checked / "white.png", np.full((8, 8, 3), 255, np.uint8))
    shielded("check", checked, "--against", made, "--out", out, code=3)
    run = json.loads((out / "check.json").read_text())
    assert (run["space"], run["summary"]["inside"]) == ("colour", 1)
    protected, sought = colours(source), colours(checked)
    for one, u in zip(run["images"], sought, strict=True):
        distances = [np.linalg.norm(u - z) for z in protected]
        assert one["nearest"] == f"{int(np.argmin(distances))}.png"
        assert one["distance"] == pytest.approx(min(distances), abs=1e-6)
        assert one["inside"] == (min(distances) < 0.1)
        assert one["cosine"] is None
    assert "does not fit" in complaint("check", checked, "--against", made, "--space", "location")

    latents = tmp_path / "latents"
    shielded("protect", "build", latents, source, "--model", rgb, "--radius", 1)
    both = ["check", checked, "--against", latents, "--against", made, "--out", out]
    result = shielded(*both, code=3)
    assert "1 of 2 images are inside a shield." in result.stderr
    run = json.loads((out / "check.json").read_text())
    assert [(part["space"], part["summary"]["inside"]) for part in run["sets"]] == [
        ("latent", 0), ("colour", 1),
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO((out / "check.csv").read_text())))
    assert [(row["space"], row["image"], row["inside"]) for row in rows] == [
        ("latent", "shuffled.png", "False"), ("latent", "white.png", "False"),
        ("colour", "shuffled.png", "True"), ("colour", "white.png", "False"),
    ]  # fmt: skip
    assert sorted(p.name for p in out.glob("*.png")) == ["sheet-1.png", "sheet-2.png"]
    assert "--radius is for one set" in complaint(*both, "--radius", 1)


def test_generate_keeps_away_from_a_set_in_its_space(tmp_path, made, source, rgb):
    generate = ["generate", "a dog", "-n", 3, "--model", rgb, "--steps", 2, "--radius", 0]
    shielded(*generate, "--out", tmp_path / "before")
    shielded("protect", "add", made, tmp_path / "before/plain/001-seed1.png", "--radius", 0.3)
    out = tmp_path / "after"
    shielded(*generate, "--protect", made, "--no-plain", "--out", out)
    run = run_of(out)
    assert run["settings"]["space"] == "colour"  # it need not be said
    mine = colours(tmp_path / "before/plain")[1]
    assert all(np.linalg.norm(u - mine) >= 0.3 * (1 - 1e-5) for u in colours(out / "shielded"))
    certificate = run["images"][1]["certificate"]
    assert (certificate["source"], certificate["nearest"]) == ("protected", "001-seed1.png")
    folder = [*generate, "--protect", tmp_path / "before/plain", "--protect-radius", 0.2]
    shielded(*folder, "--space", "colour", "--no-plain", "--out", out)
    for u in colours(out / "shielded"):
        assert nearest([u, *colours(tmp_path / "before/plain")][:2]) >= 0.2 * (1 - 1e-5)
    protect = [*generate, "--protect", made, "--out", tmp_path / "no"]
    assert "embedding colour against style" in complaint(*protect, "--space", "style")
    assert "embedding colour against none" in complaint(*protect, "--space", "latent")
    assert "embedding colour against none" in complaint(*protect, "--method", "discard")


class Corners:
    """What a copy descriptor looks like: directions, and a cosine above which pairs are copies."""

    name, copy_threshold = "corners", 0.68

    def embed(self, images):
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def test_where_copies_are_known_the_radius_is_theirs(tmp_path, source, rgb, monkeypatch):
    pytest.importorskip("lance", reason="needs the extra [protect]")
    found = lambda spec, device="cpu": Semantic(Network(Corners()))  # noqa: E731
    monkeypatch.setattr("shielded.cli.protect_open.find_space", found)
    build = ["protect", "build", tmp_path / "set", source, "--model", rgb, "--space", "corners"]
    assert "radius 0.8, where corners sees a copy (cosine 0.68)" in shielded(*build).stdout
    out = tmp_path / "out"
    result = shielded("check", source, "--against", tmp_path / "set", "--out", out, code=3)
    run = json.loads((out / "check.json").read_text())
    assert run["radius"] == pytest.approx(math.sqrt(2 - 2 * 0.68))
    assert all(one["cosine"] == pytest.approx(1, abs=1e-6) for one in run["images"])
    assert "cosine 1.000" in result.stdout
    inverse = 255 - np.asarray(Image.open(source / "0.png"))
    store(tmp_path / "other/o.png", inverse)
    shielded("check", tmp_path / "other", "--against", tmp_path / "set", "--out", out, code=3)
    (one,) = json.loads((out / "check.json").read_text())["images"]

    def direction(array):
        x = torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)[None]
        return nn.functional.normalize(Corners().embed(x))

    z = torch.cat([direction(np.asarray(Image.open(source / f"{k}.png"))) for k in range(5)])
    cosines = (direction(inverse) @ z.T)[0]
    assert one["cosine"] == pytest.approx(float(cosines.max()), abs=1e-6)
    assert one["nearest"] == f"{int(cosines.argmax())}.png"
    assert one["inside"] == (float(cosines.max()) > 0.68)


# Methods


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Three swords as the model gives them."""
    out = tmp_path_factory.mktemp("plain")
    shielded(*SPRITES, "-n", 3, "--steps", 4, "--radius", 0, "--out", out)
    return out / "plain"


CALLS = {
    "spell": ["--radius", 34],
    "kernel": ["--space", "colour", "--strength", 6, "--variant", "score"],
    "particle": ["--strength", 60],
    "posterior": ["--radius", 34],
    "safe-denoiser": ["--radius", 34, "--strength", 5],
    "sgf": ["--radius", 34, "--strength", 5],
    "cads": [],
    "interval": [],
    "lower": ["--share", 0.1],
    "discard": ["--radius", 31],
}
OFF = {
    "kernel": ["--space", "colour", "--strength", 0],
    "particle": ["--strength", 0],
    "posterior": ["--radius", 25, "--strength", 0],
    "safe-denoiser": ["--radius", 25, "--strength", 0],
    "sgf": ["--radius", 25, "--strength", 0],
    "lower": ["--share", 1],
}


@pytest.mark.parametrize("name", list(CALLS))
def test_each_method_makes_the_same_seeds_twice(name, plain, tmp_path):
    generate = [*SPRITES, "-n", 3, "--steps", 4, "--method", name, "--out", tmp_path]
    result = CliRunner().invoke(app, [str(a) for a in [*generate, *CALLS[name]]])
    run = run_of(tmp_path)
    assert same(tmp_path / "plain", plain)
    assert run["method"]["name"] == name
    assert [image["seed"] for image in run["images"]] == [3, 4, 5]
    files = [(tmp_path / image["plain"], tmp_path / image["shielded"]) for image in run["images"]]
    if name not in ("interval", "posterior"):  # these may have nothing to do
        assert any(a.read_bytes() != b.read_bytes() for a, b in files)
        assert run["summary"]["moved"] > 0
    page = (tmp_path / "report.html").read_text()
    assert f"with {METHODS[name].title}" in page
    assert (tmp_path / "trace.png").exists() == METHODS[name].moves
    if METHODS[name].certifies:
        inside = sum(not image["certificate"]["clear"] for image in run["images"])
        assert run["summary"]["not_clear"] == inside
        assert result.exit_code == (3 if inside else 0), result.output
        assert ("all clear" in result.stdout) == (inside == 0)
        after = [np.asarray(Image.open(b), float) / 127.5 for _, b in files]
        apart = nearest([x.ravel() for x in after])
        assert (apart >= run["settings"]["radius"] * (1 - 1e-5)) == (inside == 0)
        assert "Nothing was certified" not in page
    else:
        assert result.exit_code == 0, result.output
        assert "nothing was certified" in result.stdout
        assert "clear" not in result.stdout
        assert "Nothing was certified" in page
        assert {image["certificate"] for image in run["images"]} == {None}
        assert (run["summary"]["certified"], run["summary"]["not_clear"]) == (False, None)


@pytest.mark.parametrize("name", list(OFF))
def test_switched_off_a_method_gives_the_plain_images(name, plain, tmp_path):
    generate = [*SPRITES, "-n", 3, "--steps", 4, "--method", name, "--out", tmp_path, "--no-plain"]
    CliRunner().invoke(app, [str(a) for a in [*generate, *OFF[name]]])
    assert same(tmp_path / "shielded", plain)


def test_kernel_repulsion_spreads_colours_and_attraction_gathers_them(plain, tmp_path):
    spread = [nearest(colours(plain))]
    kernel = [*SPRITES, "-n", 3, "--steps", 4, "--method", "kernel", "--space", "colour"]
    for way in ([], ["--attract"]):
        shielded(*kernel, "--strength", 6, *way, "--no-plain", "--out", tmp_path)
        spread.append(nearest(colours(tmp_path / "shielded")))
        found = run_of(tmp_path)["summary"]["nearest_pair_shielded_in_space"]
        assert found == pytest.approx(spread[-1], rel=1e-4)
    assert spread[2] < spread[0] < spread[1]


def test_nudging_leaves_what_passes_and_changes_or_withholds_what_is_too_close(plain, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/mine.png").write_bytes((plain / "000-seed3.png").read_bytes())
    nudging = [*SPRITES, "-n", 3, "--steps", 4, "--method", "nudging", "--no-plain"]
    away = ["--protect", tmp_path / "p", "--protect-radius", 15, "--radius", 0]
    result = CliRunner().invoke(app, [str(a) for a in [*nudging, *away, "--out", tmp_path / "o"]])
    run = run_of(tmp_path / "o")
    images = [np.asarray(Image.open(p), float) for p in sorted((tmp_path / "o").glob("*/*.png"))]
    mine = np.asarray(Image.open(plain / "000-seed3.png"), float)
    outcomes = [image["nudging"]["outcome"] for image in run["images"]]
    assert outcomes[0] in ("nudged", "withheld")
    assert outcomes[1:] == ["passed", "passed"]  # 30 apart
    for k, name in enumerate(["000-seed3.png", "001-seed4.png", "002-seed5.png"]):
        same_file = (tmp_path / "o/shielded" / name).read_bytes() == (plain / name).read_bytes()
        assert same_file == (outcomes[k] == "passed")
        if outcomes[k] != "withheld":
            assert np.linalg.norm(images[k] - mine) / 127.5 >= 15 * (1 - 1e-5)
    assert result.exit_code == (3 if "withheld" in outcomes else 0), result.output
    assert "nothing was certified" in result.stdout
    assert set(METHODS) == {*CALLS, "nudging"}  # each method is tested


# Tiny decoders


def test_a_tiny_decoder_looks_ahead_and_the_saved_images_are_certified(saved, tmp_path):
    file = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Identity(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), Block(8, False),
        nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1, bias=False), Block(8, False),
        nn.Conv2d(8, 3, 3, padding=1),
    )  # fmt: skip
    save_file(net.state_dict(), file)
    generate = ["generate", "a dog", "-n", 3, "--model", saved("stable_diffusion"), "--steps", 2]
    tiny = ["--space", "colour", "--radius", 0.02, "--tiny-decoder", file]
    CliRunner().invoke(app, [str(a) for a in [*generate, *tiny, "--out", tmp_path / "o"]])
    run, after = run_of(tmp_path / "o"), colours(tmp_path / "o/shielded")
    for k, image in enumerate(run["images"]):
        d = min(np.linalg.norm(after[k] - after[j]) for j in range(3) if j != k)
        assert image["certificate"]["distance"] == pytest.approx(d, abs=1e-4)
    pixels = ["generate", "sword", *tiny, "--out", tmp_path / "p"]
    assert "decodes nothing" in complaint(*pixels)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--space", "color"], "'color' is no space: choose one of latent, colour"),
        (["--space", "latent:x"], "is no space"),
        (["--space", "colour:red"], "give --space colour"),
        (["--space", "smallnet"], "smallnet needs a name"),
        (["--space", "smallnet:dogs"], "No feature network is called 'dogs'"),
        (["--space", "sscd"], "sscd needs its weights"),
        (["--space", "sscd:none.safetensors"], "there is no file none.safetensors"),
        (["--space", f"sscd:{__file__}"], "no safetensors file"),
        (["--space", "dinov2:./none"], "there is no folder ./none"),
        (["--space", "clip:none"], "there is no folder none"),
        (["--space", f"dinov2:{Path(__file__).parent}"], "dinov2 could not be loaded from"),
        (["--tiny-decoder", __file__], "--tiny-decoder needs a --space"),
        (["--tiny-decoder", "none", "--space", "colour"], "there is no file none"),
        (["--every", "0"], "--every is 0"),
        (["--method", "magic"], "'magic' is no method: choose one of spell, kernel"),
        (["--method", "cads", "--radius", "3"], "--method cads takes no --radius"),
        (["--method", "kernel", "--protect", "x"], "--method kernel takes no --protect"),
        (["--method", "kernel", "--variant", "x"], "variant is 'x'"),
        (["--method", "discard", "--space", "colour"], "--method discard takes no --space"),
        (["--method", "particle", "--every", "2"], "--method particle takes no --every"),
        (["--method", "lower", "--share", "2"], "share is 2.0"),
        (["--method", "nudging"], "--method nudging needs --protect"),
        (["--strength", "2"], "--method spell takes no --strength: leave it out (kernel"),
        (["--attract"], "--method spell takes no --attract"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path):
    out = tmp_path / "o"
    assert words in complaint("generate", "sword", "-n", 1, *arguments, "--out", out)
    assert not out.exists()


def test_paths_are_kept_whole_and_names_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    assert spaces_by_name.settled("dinov2:net") == f"dinov2:{tmp_path / 'net'}"
    for spec in ("colour", "smallnet:sprites", "clip:owner/name", "dinov2"):
        assert spaces_by_name.settled(spec) == spec


def test_a_network_that_does_not_fit_is_one_sentence(rgb, tmp_path):
    generate = ["generate", "a dog", "--model", rgb, "--radius", 1, "--steps", 1, "-n", 1]
    told = complaint(*generate, "--space", "smallnet:sprites", "--out", tmp_path)
    assert "takes images (32, 32)" in told
