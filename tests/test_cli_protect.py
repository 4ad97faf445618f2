# SPDX-License-Identifier: Apache-2.0
"""`shielded protect` and `shielded check` as a person or a script meets them."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("lance", reason="needs the extra [protect]")

from families import FAMILIES
from shielded.cli.app import app
from shielded.cli.load import find_pipe
from shielded.cli.look import from_latent
from shielded.cli.sample import batches, sample, to_images
from shielded.report.check_sheet import Match, check_sheet
from shielded.report.sheet import CELL, MARGIN, ORANGE
from shielded.shields.search.nearest import CROWD, Nearest, _Block, nearest
from shielded.shields.store import Part, ProtectedSet
from shielded.spaces import encode


def picture(seed, side=8):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def store(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def source(tmp_path):
    """Five pictures in a folder."""
    for k in range(5):
        store(tmp_path / f"pictures/{k}.png", picture(k))
    return tmp_path / "pictures"


def shielded(*arguments, code=0):
    """Run the command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def told(*arguments, code=0):
    """What the command prints as JSON."""
    return json.loads(shielded(*arguments, "--json", code=code).stdout)


def complaint(*arguments):
    """The one sentence on stderr about bad input."""
    result = shielded(*arguments, code=2)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture
def made(tmp_path, source, rgb):
    """A set of the five pictures."""
    shielded("protect", "build", tmp_path / "set", source, "--model", rgb, "--radius", 5)
    return tmp_path / "set"


def ids(folder):
    return [name for rows in ProtectedSet.open(folder).entries(["id"]) for name in rows["id"]]


# Building and keeping


def test_a_set_is_built_looked_at_changed_and_verified(tmp_path, source, rgb):
    folder = tmp_path / "set"
    found = told("protect", "build", folder, source, "--model", rgb, "--radius", 5)
    assert (found["added"], found["present"], found["images"], found["skipped"]) == (5, 0, 5, [])
    about = told("protect", "info", folder)
    assert (about["images"], about["radius"], about["dtype"]) == (5, 5.0, "float16")
    assert about["fingerprint"]["pipeline"] == "IFPipeline"
    assert about["fingerprint"]["model"] == str(rgb.resolve())
    assert [v["images"] for v in about["versions"]] == [0, 5]
    assert about["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())

    store(tmp_path / "more/new.png", picture(9))
    found = told("protect", "add", folder, source, tmp_path / "more", "--radius", 2)
    assert (found["added"], found["present"]) == (1, 5)
    entries = told("protect", "list", folder)["entries"]
    assert [(e["id"], e["radius"]) for e in entries[:2]] == [("0.png", None), ("1.png", None)]
    assert (entries[5]["id"], entries[5]["radius"]) == ("new.png", 2.0)
    assert entries[5]["source"] == str(tmp_path / "more/new.png")

    assert told("protect", "remove", folder, "1.png", "3.png")["images"] == 4
    assert told("protect", "compact", folder, "--keep", 1)["versions"] == 1
    assert ids(folder) == ["0.png", "2.png", "4.png", "new.png"]
    report = told("protect", "verify", folder)
    assert (report["images"], report["damaged"], report["missing"]) == (4, [], [])


def test_the_words_for_a_person(made, source):
    result = shielded("protect", "build", made, source, "--model", made.parent / "none", code=2)
    assert "none is not a model" in result.stderr
    words = shielded("protect", "add", made, source).stdout
    assert "0 images added, 5 already there" in words
    words = shielded("protect", "list", made, "--limit", 2).stdout.splitlines()
    assert words[0].split("\t")[:2] == ["0.png", "-"]
    assert words[2] == "and 3 more: --limit 0 shows all"
    assert len(shielded("protect", "list", made, "--limit", 0).stdout.splitlines()) == 5
    words = shielded("protect", "info", made).stdout
    assert "5 images" in words
    assert "radius   5.0" in words
    assert "added 5" in words
    assert "all as written" in shielded("protect", "verify", made).stdout
    assert "versions kept: 1" in shielded("protect", "compact", made, "--keep", 1).stdout


def test_what_is_stored_is_what_the_pipeline_encodes(tmp_path, source, saved):
    for name, kind in (("deepfloyd_if", torch.float32), ("flux", torch.float16)):
        folder = tmp_path / name
        size = ["--height", 32, "--width", 32] if name == "flux" else []
        exact = ["--float32"] if kind == torch.float32 else []
        shielded("protect", "build", folder, source, "--model", saved(name), *size, *exact)
        a, pipe = ProtectedSet.open(folder), find_pipe(str(saved(name)), torch.float32)
        images = [Image.open(source / f"{k}.png") for k in range(5)]
        expected = encode(pipe, images, *a.fingerprint["size"])
        rows = np.concatenate([part.rows for part in a.parts()])
        assert torch.equal(torch.tensor(a.take(rows)), expected.flatten(1).to(kind))


def test_a_picture_that_is_skipped_is_told_by_exit_code_and_sentence(tmp_path, source, rgb):
    (source / "cut.png").write_bytes((source / "0.png").read_bytes()[:150])
    store(source / "huge.png", picture(7, 40))
    (source / "notes.txt").write_text("notes")
    build = ["protect", "build", tmp_path / "set", source, "--model", rgb]
    result = shielded(*build, "--limit-pixels", 1000, code=3)
    assert "5 images added" in result.stdout
    assert "1 other files left aside: .txt 1" in result.stdout
    assert "skipped cut.png: damaged" in result.stderr
    assert "skipped huge.png: more than 1,000 pixels" in result.stderr
    assert "2 skipped and NOT PROTECTED" in result.stderr
    found = told("protect", "add", tmp_path / "set", source, code=3)
    assert (found["added"], found["present"]) == (1, 5)  # huge.png is within the usual limit
    assert [one["id"] for one in found["skipped"]] == ["cut.png"]


def test_a_set_that_does_not_fit_is_refused(made, source, saved):
    latents = ["--model", saved("stable_diffusion")]
    assert "does not fit" in complaint("protect", "add", made, source, *latents)
    assert "does not fit" in complaint("check", source, "--against", made, *latents)
    other = ["protect", "build", made, source, "--model", saved("deepfloyd_if")]
    assert "has radius 5.0" in complaint(*other, "--radius", 6)
    assert "image size [8, 8] against [24, 24]" in complaint(*other, "--height", 24, "--width", 24)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "SET", "nowhere"], "there is no file or folder nowhere"),
        (["build", "NEW", "PICTURES", "--radius", "-1"], "--radius is -1"),
        (["build", "NEW", "PICTURES", "--radius", "nan"], "--radius is nan"),
        (["build", "NEW", "PICTURES", "--batch-size", "0"], "--batch-size is 0"),
        (["build", "NEW", "PICTURES", "--limit-pixels", "0"], "--limit-pixels is 0"),
        (["build", "NEW", "PICTURES", "--height", "8"], "both --height and --width"),
        (["build", "PICTURES", "PICTURES", "--model", "MODEL"], "is not empty"),
        (["add", "PICTURES", "PICTURES"], "there is no protected set at"),
        (["remove", "SET", "9.png"], "'9.png' not in the set"),
        (["remove", "SET", "0.png", "9.png"], "'9.png' not in the set"),
        (["list", "NEW"], "there is no protected set at"),
        (["list", "SET", "--limit", "-1"], "--limit is -1"),
        (["info", "NEW"], "there is no protected set at"),
        (["verify", "NEW"], "there is no protected set at"),
        (["compact", "SET", "--keep", "0"], "keep is 0"),
    ],
)
def test_bad_input_is_one_sentence(made, source, rgb, tmp_path, arguments, words):
    places = {"SET": made, "NEW": tmp_path / "new", "PICTURES": source, "MODEL": rgb}
    assert words in complaint("protect", *(places.get(a, a) for a in arguments))
    assert ids(made) == [f"{k}.png" for k in range(5)]
    assert not (tmp_path / "new").exists()


def test_verify_finds_a_flipped_byte(made):
    (data,) = (made / "latents.lance/data").iterdir()
    whole = bytearray(data.read_bytes())
    whole[len(whole) // 2] ^= 1
    data.write_bytes(whole)
    result = shielded("protect", "verify", made, code=3)
    assert f"damaged: latents.lance/data/{data.name}" in result.stderr
    assert "restore" in result.stderr
    assert told("protect", "verify", made, code=3)["damaged"] == [f"latents.lance/data/{data.name}"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_build_that_is_killed_goes_on_where_it_was(tmp_path):
    for k in range(60):
        store(tmp_path / f"in/{k:03d}.png", picture(k, 8))
    folder, rng, sizes = tmp_path / "set", random.Random(0), [0]
    ProtectedSet.create(folder, (3, 8, 8))
    worker = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ingest_worker.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    out = worker.stdout
    assert out.readline() == "ready\n"
    for kill in range(8):
        print(json.dumps([str(folder), str(tmp_path / "in")]), file=worker.stdin, flush=True)
        pid, enough = None, kill < 7 and rng.randint(1, 7)
        for line in out:  # how many are in the set by now, until it is gone
            if line.startswith("pid"):
                pid = int(line.split()[1])
            if line == "gone\n":
                break
            if enough and pid and line.strip().isdigit() and int(line) >= enough:
                time.sleep(rng.random() * 0.02)
                os.kill(pid, signal.SIGKILL)
                enough = False
        a = ProtectedSet.open(folder)
        assert a.verify().sound
        assert ids(folder) == [f"{k:03d}.png" for k in range(len(a))]  # in order, once each
        assert len(a) >= sizes[-1]
        sizes.append(len(a))
    worker.stdin.close()
    assert worker.wait(10) == 0
    assert sizes[-1] == 60
    assert len(set(sizes)) > 4  # it was killed in the middle, time and again
    rows = np.concatenate([part.rows for part in a.parts()])
    expected = np.stack([picture(k, 8).transpose(2, 0, 1) for k in range(60)]) / 127.5 - 1
    assert np.allclose(a.take(rows).reshape(expected.shape), expected, atol=1e-3)


def test_ctrl_c_keeps_what_was_encoded_and_says_so(tmp_path, source, rgb, monkeypatch):
    calls = []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*given)

    build = ["protect", "build", tmp_path / "set", source, "--model", rgb, "--batch-size", 2]
    with monkeypatch.context() as patch:
        patch.setattr("shielded.spaces.encode", interrupted)
        result = shielded(*build, code=130)
    assert result.stderr.strip() == f"Interrupted. 4 finished images are in {tmp_path / 'set'}."
    found = told(*build)
    assert (found["added"], found["present"]) == (1, 4)


# The audit


def colour(array):
    return torch.from_numpy(array.astype(float)).permute(2, 0, 1) / 127.5 - 1


@pytest.fixture
def checked(tmp_path):
    """Pictures to check: one the same as a protected one, one near another, two far from all."""
    near = picture(2).astype(int)
    near[0, 0] = np.abs(near[0, 0] - 100)
    for name, array in {
        "same": picture(0), "near": near.astype(np.uint8), "far": picture(50), "b/far": picture(51),
    }.items():  # fmt: skip
        store(tmp_path / f"made/{name}.png", array)
    return tmp_path / "made"


def test_check_finds_the_nearest_protected_image_of_each(tmp_path, made, checked, source):
    out = tmp_path / "out"
    result = shielded("check", checked, "--against", made, "--out", out, code=3)
    assert "4 images checked against 5 protected, 2 inside a shield" in result.stdout
    assert "same.png is 0" in result.stdout
    assert "2 of 4 images are inside a shield." in result.stderr
    run = json.loads((out / "check.json").read_text())
    assert run["summary"]["inside"] == 2
    assert run["set"]["version"] == 2
    rows = {
        row["image"]: row for row in csv.DictReader(io.StringIO((out / "check.csv").read_text()))
    }
    assert set(rows) == {"same.png", "near.png", "far.png", "b/far.png"}
    protected = {f"{k}.png": colour(picture(k)).half().double() for k in range(5)}
    for one in run["images"]:
        x = colour(np.asarray(Image.open(checked / one["image"])))
        distances = {name: float((x - z).norm()) for name, z in protected.items()}
        assert one["nearest"] == min(distances, key=distances.__getitem__)
        assert one["distance"] == pytest.approx(min(distances.values()), abs=1e-5)
        assert one["inside"] == (one["distance"] < 5 * (1 - 1e-5))
        assert one["nearest_source"] == str(source / one["nearest"])
        assert float(rows[one["image"]]["distance"]) == one["distance"]
    assert rows["near.png"]["inside"] == "True"


def test_check_judges_by_the_radius_given_or_by_each_images_own(tmp_path, made, checked):
    check = ["check", checked, "--against", made, "--out", tmp_path / "out"]
    assert told(*check, "--radius", 0)["summary"]["inside"] == 0
    everyone = told(*check, "--radius", 100, code=3)
    assert everyone["summary"]["inside"] == 4
    assert {one["radius"] for one in everyone["images"]} == {100.0}
    far = colour(picture(50))
    a = ProtectedSet.open(made)
    a.add(far[None] + 0.5, ids=["wide"], radii=[20])  # 6.9 away: 0.35 of its radius
    found = {one["image"]: one for one in told(*check, code=3)["images"]}
    assert (found["far.png"]["nearest"], found["far.png"]["radius"]) == ("wide", 20.0)
    assert found["far.png"]["inside"]
    assert found["far.png"]["distance"] == pytest.approx(0.5 * 192**0.5, rel=1e-3)
    assert (found["same.png"]["nearest"], found["same.png"]["radius"]) == ("0.png", 5.0)
    a.add(far[None], ids=["off"], radii=[0])  # shields nothing, and hides nothing
    found = {one["image"]: one for one in told(*check, code=3)["images"]}
    assert found["far.png"]["nearest"] == "wide"


def test_what_could_not_be_judged_is_told(tmp_path, made, checked):
    (checked / "cut.png").write_bytes((checked / "far.png").read_bytes()[:150])
    for name in ("same.png", "near.png"):
        (checked / name).unlink()
    out = tmp_path / "out"
    result = shielded("check", checked, "--against", made, "--out", out, code=3)
    assert "skipped cut.png: damaged" in result.stderr
    assert "1 could not be read and were NOT judged." in result.stderr
    rows = list(csv.DictReader(io.StringIO((out / "check.csv").read_text())))
    assert rows[-1]["image"] == "cut.png"
    assert "damaged" in rows[-1]["skipped"]
    assert rows[-1]["inside"] == ""


def test_check_of_several_places_names_each_by_its_path(tmp_path, made):
    for name in ("a", "b"):
        store(tmp_path / name / "1.png", picture(60 + ord(name)))
    both = [tmp_path / "a", tmp_path / "b"]
    found = told("check", *both, "--against", made, "--radius", 1, "--out", tmp_path / "out")
    assert [one["image"] for one in found["images"]] == [f"{p}/1.png" for p in both]


def test_bad_input_of_check_is_one_sentence(tmp_path, made, source, rgb, checked):
    (tmp_path / "none").mkdir()
    (tmp_path / "file").write_text("")
    out = ["--out", tmp_path / "o"]
    check = ["check", checked, "--against", made]
    assert "--radius is -2" in complaint(*check, "--radius", -2)
    assert "cannot be written" in complaint(*check, "--out", tmp_path / "file/o")
    assert "no protected set" in complaint("check", checked, "--against", source, *out)
    assert "no images to check" in complaint("check", tmp_path / "none", "--against", made, *out)
    shielded("protect", "build", tmp_path / "bare", source, "--model", rgb)
    told_ = complaint("check", checked, "--against", tmp_path / "bare", *out)
    assert "without a radius: give --radius" in told_
    shielded("protect", "remove", tmp_path / "bare", *ids(tmp_path / "bare"))
    assert "is empty" in complaint(
        "check", checked, "--against", tmp_path / "bare", "--radius", 1, *out
    )


def test_the_sheet_shows_files_that_are_unchanged_and_decodes_the_others(tmp_path, made, checked):
    out = tmp_path / "out"
    shielded("check", checked / "same.png", "--against", made, "--out", out, code=3)
    before = np.asarray(Image.open(out / "sheet.png"))
    store(tmp_path / "pictures/0.png", 255 - picture(0))  # the source has changed: not shown
    shielded("check", checked / "same.png", "--against", made, "--out", out, code=3)
    assert np.abs(before.astype(int) - np.asarray(Image.open(out / "sheet.png"))).max() <= 1
    (tmp_path / "pictures/0.png").unlink()
    shielded("check", checked / "same.png", "--against", made, "--out", out, code=3)
    assert np.abs(before.astype(int) - np.asarray(Image.open(out / "sheet.png"))).max() <= 1
    big = Image.fromarray(picture(0)).resize((CELL, CELL), Image.Resampling.NEAREST)
    assert np.asarray(big).tobytes() in {
        np.ascontiguousarray(before[y : y + CELL, MARGIN : MARGIN + CELL]).tobytes()
        for y in range(before.shape[0] - CELL)
    }


def test_only_matches_inside_have_an_orange_frame():
    def frames(inside):
        image = Image.new("RGB", (8, 8), "blue")
        match = Match("a", image, "b", None, 1.0, 2.0, inside)
        sheet = check_sheet([match, match], "title")
        orange = tuple(int(ORANGE[k : k + 2], 16) for k in (1, 3, 5))
        return (np.asarray(sheet) == orange).all(-1).sum()

    assert frames(False) == 0
    assert frames(True) > 2 * 4 * (2 * CELL + CELL)


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "stable_diffusion_3", "qwen_image"])
def test_latents_decode_to_pictures_as_the_pipeline_does_it(name):
    family = FAMILIES[name]()
    latent, image = family.run(latents=True)[0], family.run()[0]
    size = (family.call.get("height", 16), family.call.get("width", 16))
    if name == "stable_diffusion":
        size = (None, None)
    got = from_latent(family.pipe, latent, size)
    shown = (np.asarray(image) * 255).round()
    assert np.abs(np.asarray(got, float) - shown).max() <= 1


def test_a_set_keeps_generate_away_and_is_named_in_its_report(tmp_path, made, rgb):
    (batch,) = batches(("a dog",), 2, 0, 2)
    plain = sample(find_pipe(str(rgb), torch.float32), batch, {"num_inference_steps": 2})
    for k, image in enumerate(to_images(plain)):
        (tmp_path / "plain").mkdir(exist_ok=True)
        image.save(tmp_path / f"plain/seed{k}.png")
    shielded("protect", "add", made, tmp_path / "plain/seed1.png", "--radius", 9)
    found = told("check", tmp_path / "plain", "--against", made, "--out", tmp_path / "o", code=3)
    assert found["summary"]["inside"] == 1
    out = tmp_path / "out"
    shielded(
        "generate", "a dog", "-n", 2, "--model", rgb, "--steps", 2, "--radius", 0, "--no-plain",
        "--protect", made, "--out", out,
    )  # fmt: skip
    run = json.loads((out / "run.json").read_text())
    assert run["settings"]["protected"] == {"set": str(made), "version": 3, "images": 6}
    certificate = run["images"][1]["certificate"]
    assert (certificate["source"], certificate["nearest"]) == ("protected", "seed1.png")
    assert certificate["intervened"]
    assert "one of the 6 protected images" in (out / "report.html").read_text()
    assert told("check", out / "shielded", "--against", made, "--out", tmp_path / "o")


# The search


class Blocks:
    """A protected set in memory, in parts of a few rows."""

    def __init__(self, z, radii, size):
        self.z, self.r, self.radius, self.size = z, radii, None, size
        self.dim = z.shape[1]

    def __len__(self):
        return len(self.z)

    def parts(self):
        rows = np.arange(len(self.z), dtype=np.uint64)
        return [Part(str(k), rows[k : k + self.size]) for k in range(0, len(rows), self.size)]

    def read(self, part, batch):
        for k in range(0, len(part.rows), batch):
            rows = part.rows[k : k + batch]
            yield rows, self.z[rows.astype(int)].numpy()

    def radii(self, part):
        return self.r[part.rows.astype(int)].double().numpy()


@settings(max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from([1, 2, 7, 64, 500]),
    st.sampled_from(["random", "copies", "far", "near", "tiny", "huge"]),
    st.booleans(),
    st.integers(0, 9),
)
def test_the_nearest_is_exact(points, count, dim, kind, own, seed):
    """The same image as by brute force, the first of those at the same distance."""
    g = torch.Generator().manual_seed(seed)
    z, x = torch.randn(count, dim, generator=g), torch.randn(points, dim, generator=g)
    if kind == "copies":
        z, x = z[:3].repeat(200, 1)[:count], x * 1e-3 + z[0]
    elif kind == "far":
        z, x = z + 300, x + 300
    elif kind == "near":
        z = x[torch.randint(points, (count,), generator=g)] + 1e-3 * z
    z = z.half().float()
    if kind in ("tiny", "huge"):
        z, x = (y * {"tiny": 1e-21, "huge": 1e21}[kind] for y in (z, x))
    r = torch.rand(count, generator=g).mul(4).round() if own else torch.ones(count)
    r = r if bool((r > 0).any()) else torch.ones(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shielded.shields.search.nearest.POINTS", 16)
        found = nearest(Blocks(z, r, 97), x, None if own else 1.0)
    d = (x.double()[:, None] - z.double()).norm(dim=2)
    share = torch.where(r > 0, d / r, torch.inf)
    row = torch.from_numpy(found.row.astype(np.int64))
    assert torch.allclose(found.share, share.amin(1), rtol=1e-12, atol=0)
    assert torch.allclose(found.square.sqrt(), d[torch.arange(points), row], rtol=1e-12, atol=0)
    ties = share <= share.amin(1, keepdim=True) * (1 + 1e-12)
    assert torch.equal(row, ties.int().argmax(1))


def test_images_of_radius_zero_count_where_there_are_no_others():
    z, x = torch.randn(50, 8), torch.randn(9, 8)
    found = nearest(Blocks(z, torch.zeros(50), 20), x, None)
    assert found.row.tolist() == torch.cdist(x, z).argmin(1).tolist()


def test_the_first_of_copies_counts_in_whatever_order_they_are_measured():
    x, rows = torch.randn(1, 8), np.array([3, 5], np.uint64)
    found, block = Nearest(x), _Block(rows, x.repeat(2, 1) + 1, torch.ones(2).double())
    for image in (1, 0, 1):
        found._measure(torch.tensor([0]), torch.tensor([image]), block)
    assert found.row.tolist() == [3]


def test_few_pairs_are_measured():
    """Neither among thousands of copies nor in a set whose images are far from each other."""
    z = torch.randn(1, 32).repeat(4000, 1)
    found = nearest(Blocks(z, torch.ones(4000), 4000), z[:50] + 0.1, 1.0)
    assert found.measured <= 50 * 2 * (CROWD + 1)
    assert torch.allclose(found.square, torch.tensor(0.32, dtype=torch.float64), rtol=1e-4)
    assert found.row.tolist() == [0] * 50
    z = torch.randn(4000, 256)
    found = nearest(Blocks(z, torch.ones(4000), 4000), torch.randn(50, 256), 1.0)
    assert found.measured <= 50 * 20
    assert torch.get_float32_matmul_precision() == "highest"
