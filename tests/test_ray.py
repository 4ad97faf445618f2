# SPDX-License-Identifier: Apache-2.0
"""Work past one process: the same hits, the same set, whoever did what."""

import io
import json
import os
import signal
import sys
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import shielded
from shielded import Shields, Spell, cluster
from shielded.errors import BadInput, Lost, MissingExtra, NonFinite, ShapeMismatch

pytest.importorskip("lance", reason="needs the extra [protect]")
pytest.importorskip("ray.data", reason="needs the extra [ray]")

import pyarrow as pa
import ray

from ingest_worker import Fatal, Pixel
from shielded.cli.app import app
from shielded.cli.on_ray import _pipe
from shielded.ingest import build, open_source
from shielded.ingest.ray_build import ray_build
from shielded.ingest.ray_work import Encoder, read, table, tables
from shielded.ingest.source import pieces
from shielded.shields.search.ray_screen import RayScreen, Shard, divided
from shielded.shields.store import Part, ProtectedSet
from shielded.spaces import fingerprint

pytestmark = [
    pytest.mark.xdist_group("ray"),  # with --dist loadgroup Ray is started once
    pytest.mark.filterwarnings("ignore:lance is not"),
    pytest.mark.timeout(600),  # on a busy machine its processes take their time to start
]

RADIUS = 6.0


@pytest.fixture(scope="module")
def running():
    """Ray with two processors, one for all tests of this file."""
    places = [str(Path(shielded.__file__).parents[1]), str(Path(__file__).parent)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(places))  # workers know nothing of pytest's
        patch.setenv("RAY_worker_niceness", "0")  # else they starve where tests run in parallel
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 << 20,
            log_to_driver=False, logging_level="error",
        )  # fmt: skip
        yield
        ray.shutdown()


def latents(n, seed=0):
    """Values that float16 holds exactly, so that disk and memory agree to the bit."""
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x.half().float()


@pytest.fixture
def store(tmp_path):
    """Three parts, some images twice in different ones, some with a radius of their own."""
    made = ProtectedSet.create(tmp_path / "set", (1, 8, 8), radius=RADIUS)
    for seed, n in enumerate((200, 100, 60)):
        z = torch.cat([latents(n, seed), latents(5, 99)])
        radii = [None if k % 3 else 4.0 + k % 5 for k in range(n + 5)]
        made.add(z, ids=[f"{seed}-{k}" for k in range(n + 5)], radii=radii)
    return made


def way(steps=8):
    """Six queries a step, from afar into the set; the last to an image that is there thrice."""
    end = torch.cat([latents(200)[::70], latents(100, 1)[::60], latents(5, 99)[:1]])
    start = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    return [end + 2.0 * (1 - s / steps) * start for s in range(steps)]


def everything(store):
    """All points (N, D), radii (N,) and ids of a set, in the order of its rows."""
    parts = sorted(store.parts(), key=lambda part: int(part.rows[0]))
    z = torch.cat([torch.from_numpy(store.take(part.rows).copy()) for part in parts]).double()
    own = torch.cat([torch.from_numpy(store.radii(part)) for part in parts])
    ids = [entry.id for part in parts for entry in store.labels(part.rows)]
    return z, torch.where(own.isnan(), RADIUS, own), ids


def same(source, plain, store):
    """Compare hits along a way with those of one screen, to the bit, and with brute force."""
    z, r, ids = everything(store)
    found = 0
    for x in way():
        x, groups = x.flatten(1).double(), [0] * 6
        hits = source.references(x, groups, RADIUS)
        single = plain.references(x, groups, RADIUS)
        assert torch.equal(hits.z, single.z)
        assert torch.equal(hits.r, single.r)
        assert list(hits.ids) == list(single.ids)
        inside = (torch.cdist(x, z) <= r).any(0).nonzero()[:, 0].tolist()
        assert list(hits.ids) == [ids[k] for k in inside]
        best = source.closest(x, groups, RADIUS)
        nearest = (torch.cdist(x, z) / r).amin(1)
        share = (torch.cdist(x, best.z.double()) / best.r).amin(1)
        assert torch.allclose(share, nearest, rtol=1e-12)
        found += len(inside)
    assert found > 10


def generated(source):
    """Images of a run along the way, and their certificates."""
    sampler = Spell(Shields.batch(radius=3.0) + Shields((source,))).denoiser(lambda x, sigma: x)
    moved = [sampler(x[:5], torch.ones(5)) for x in way()]
    return [*moved, sampler.finish(way()[-1][:5])], sampler.run.certificates


def gone_for_good(source, store):
    """A shard that Ray does not start again is told, and the next question starts anew."""
    x = way()[-1].flatten(1).double()
    hits = source.references(x, [0] * 6, RADIUS)
    ray.kill(source._shards._actors[0])
    with pytest.raises(Lost, match="a shard of the search in the protected set was lost") as caught:
        source.references(x, [0] * 6, RADIUS)
    assert "\n" not in str(caught.value)
    again = source.references(x, [0] * 6, RADIUS)
    assert torch.equal(hits.z, again.z)
    before = store.version
    store.add(latents(2, 8))
    store.compact(keep=1)
    with pytest.raises(BadInput, match=f"has no version {before}"):
        source._shards._ask("near", x, RADIUS + 1)  # which the shard has to load anew


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_shards_find_what_one_screen_finds(store, running, shards):
    """Also after the set has changed, with more shards than parts, and after a kill."""
    source = Shields.protected(store.path, search="ray", shards=shards).sources[0]
    plain = Shields.protected(store.path).sources[0]
    same(source, plain, store)
    assert len(source._shards._actors) == min(shards, 3)
    images, certificates = generated(source)
    alone, certified = generated(plain)
    assert all(map(torch.equal, images, alone))
    assert certificates == certified
    assert any(c.intervened for c in certificates)
    if shards == 1:
        gone_for_good(source, store)
        return
    store.add(latents(80, 5), ids=[f"new-{k}" for k in range(80)])
    store.remove([f"0-{k}" for k in range(0, 200, 7)])
    same(source, plain, ProtectedSet.open(store.path, store.version - 2))
    source.refresh()
    plain.refresh()
    if shards != 2:
        same(source, plain, store)
        assert len(source._shards._actors) == shards
        return
    victim = source._shards._actors[0]
    pid = ray.get(victim.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    same(source, plain, store)
    assert ray.get(victim.__ray_call__.remote(lambda _: os.getpid())) != pid


def test_the_search_keeps_nothing_of_the_set_here_and_needs_no_shard_for_an_empty_one(tmp_path):
    empty = ProtectedSet.create(tmp_path / "set", (1, 8, 8), radius=RADIUS)
    source = Shields.protected(empty.path, search="ray").sources[0]
    x = way()[0]
    assert Spell(Shields((source,))).correct(x) is x
    assert len(source.closest(x.flatten(1).double(), [0] * 6, RADIUS).z) == 0
    assert source._made is None
    assert source._shards._actors == []


def test_parts_are_divided_by_their_images_and_none_is_left_out(store):
    parts = store.parts()
    for piles in (1, 2, 3, 9):
        found = divided(parts, piles)
        assert len(found) == min(piles, 3)
        names = sorted(part.name for pile in found for part in pile)
        assert names == sorted(part.name for part in parts)
    sizes = [[len(part.rows) for part in pile] for pile in divided(parts, 2)]
    assert sizes == [[205], [105, 65]]
    assert divided([], 3) == []
    rows = parts[0].rows
    many = [Part(str(k), rows[: 1 + k % 7]) for k in range(40)]
    loads = [sum(len(part.rows) for part in pile) for pile in divided(many, 4)]
    assert max(loads) - min(loads) <= 7


def test_a_shard_that_was_started_again_loads_the_version_it_is_asked_about(store):
    """A fresh shard, which knows nothing, answers as one that has served all along."""
    x = way()[-1].flatten(1).double().numpy()
    old = Shard(str(store.path), 0)
    before = old.near(store.version, 2, x, RADIUS)
    store.remove(["0-0", "1-0"])
    for version, wanted in ((store.version - 1, before), (store.version, None)):
        one = old.near(version, 2, x, RADIUS)
        other = Shard(str(store.path), 0).near(version, 2, x, RADIUS)
        assert [a.tolist() for a in one] == [a.tolist() for a in other]
        assert wanted is None or [a.tolist() for a in one] == [a.tolist() for a in wanted]
    assert len(one[0]) < len(before[0])
    with pytest.raises(BadInput, match="has no version 99"):
        old.near(99, 2, x, RADIUS)


def test_bad_settings_and_a_missing_package_are_named(store, monkeypatch):
    with pytest.raises(BadInput, match="with one at least"):
        Shields.protected(store.path, search="ray", shards=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"shielded-diffusion\[ray\]"):
        RayScreen(store, 2)


# Building


def picture(seed, kind="PNG", **options):
    """The bytes of a picture's file."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 8 + seed % 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def sources(tmp_path):
    """Two folders with every kind of file, damage, and ids that are there twice."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    for k in range(9):
        (first / f"{k}.png").write_bytes(picture(k))
    (first / "cut.png").write_bytes(picture(0)[:60])
    (first / "words.txt").write_text("no picture")
    (first / "link.png").symlink_to("../second/5.png")
    frames = [Image.open(io.BytesIO(picture(k))) for k in (3, 6)]
    frames[0].save(first / "moving.gif", save_all=True, append_images=frames[1:])
    with tarfile.open(first / "more.tar", "w") as archive:
        for k in range(20):
            info = tarfile.TarInfo(f"{k}.png")
            info.size = len(picture(50 + k))
            archive.addfile(info, io.BytesIO(picture(50 + k)))
    np.savez(first / "made.npz", latents=np.stack([np.full((3, 8, 8), k / 4) for k in range(3)]))
    (second / "0.png").write_bytes(picture(0))
    (second / "1.png").write_bytes(picture(99))
    (second / "5.jpg").write_bytes(picture(5, "JPEG"))
    return [first, second]


def told(*arguments):
    """What the command prints as JSON; some pictures are always damaged."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 3, result.output
    return json.loads(result.stdout)


def content(store):
    """Everything but the time that is stored of each image, by its id."""
    columns = ["id", "source", "sha256", "radius"]
    rows = [row for found in store.entries(columns) for row in zip(*found.values(), strict=True)]
    points = np.concatenate([store.take(part.rows) for part in store.parts()])
    return {row[0]: (row, point.tobytes()) for row, point in zip(rows, points, strict=True)}


def test_a_build_on_ray_that_was_interrupted_ends_as_the_plain_one(tmp_path, sources, rgb, running):
    given = [*sources, "--model", rgb, "--radius", 5, "--batch-size", 4]
    plain = told("protect", "build", tmp_path / "plain", *given)
    alone = ProtectedSet.open(tmp_path / "plain")
    assert (plain["added"], plain["present"]) == (34, 1)
    half = ProtectedSet.create(tmp_path / "ray", alone.shape, alone.fingerprint, radius=5.0)

    def stop(share, built):
        assert 0 < share <= 1
        if built.taken == 18:
            raise KeyboardInterrupt

    how = {"size": (8, 8), "hold": (2**12, 1e9), "tell": stop}
    with pytest.raises(KeyboardInterrupt):
        ray_build(half, Pixel, open_source(sources), 4, **how)
    some = content(half)
    assert 0 < len(some) < 18
    assert len(half.versions()) > 3
    found = told("protect", "build", tmp_path / "ray", *given, "--ray")
    assert (found["added"], found["present"]) == (34 - len(some), 1 + len(some))
    for key in ("images", "skipped", "left_aside"):
        assert found[key] == plain[key]
    assert [one["id"] for one in found["skipped"]] == ["cut.png", "link.png", "1.png"]
    assert content(ProtectedSet.open(tmp_path / "ray")) == content(alone)
    assert some.items() <= content(alone).items()


def test_an_encoder_that_is_killed_costs_no_picture(tmp_path, sources, running):
    """Ray starts another, which does again what the first did not hand on."""
    facts = fingerprint(Pixel(), 8, 8)
    plain = ProtectedSet.create(tmp_path / "plain", (3, 8, 8), facts)
    build(plain, Pixel(), open_source(sources), 4, size=(8, 8))
    marker = tmp_path / "killed"
    store = ProtectedSet.create(tmp_path / "set", (3, 8, 8), facts)
    load = partial(Fatal, str(marker))
    ray_build(store, load, open_source(sources), 4, size=(8, 8))
    assert marker.exists()
    assert content(store) == content(plain)


def test_what_is_read_and_encoded_apart_is_what_one_process_makes(tmp_path, sources, monkeypatch):
    """Pictures that are not square, transparent ones and those that the set has, without Ray."""
    monkeypatch.setattr(cluster, "engine", lambda: SimpleNamespace(get=lambda given: given))
    glass = Image.fromarray(np.random.default_rng(1).integers(0, 256, (7, 5, 4), dtype=np.uint8))
    glass.save(sources[1] / "glass.png")
    store, size = ProtectedSet.create(tmp_path / "set", (3, 8, 12)), (8, 12)
    build(store, Pixel(), open_source(sources), 4, size=size, prefix="x/")
    made = {}
    encode = Encoder(Pixel, {}, size)
    for given in tables(pieces(open_source(sources))):
        for block in read(given, pa.array(["x/3.png"]), "x/", size, 10**6):
            made |= {f"x/{row['id']}": row for row in encode(block).to_pylist() if row["sha256"]}
    assert made["x/3.png"]["latent"] is None
    assert made["x/3.png"]["sha256"] == content(store).pop("x/3.png")[0][2]
    compared = 0
    for name, (row, point) in content(store).items():
        if name in ("x/3.png", "x/0.png", "x/1.png") or name.startswith("x/made.npz"):
            continue
        assert made[name]["sha256"] == row[2]
        assert made[name]["source"] == row[1]
        latent = np.frombuffer(made[name]["latent"], np.float32).astype(np.float16)
        assert latent.tobytes() == point
        compared += 1
    assert compared == 29
    assert made["x/moving.gif"]["several"]
    assert made["x/made.npz/2"]["shape"] == [3, 8, 8]


def test_an_actor_with_another_model_is_refused(rgb):
    load, blank = partial(_pipe, str(rgb), "cpu", "float32"), bytes(192)
    facts = fingerprint(load(), 8, 8)
    row = {"place": 0, "id": "x", "sha256": "0", "picture": blank}
    made = Encoder(load, facts, (8, 8))(table([row])).to_pylist()
    assert np.frombuffer(made[0]["latent"], np.float32).tolist() == [-1.0] * 192
    assert made[0]["picture"] is None
    with pytest.raises(ShapeMismatch, match="put the same on all"):
        Encoder(load, {**facts, "size": [16, 16]}, (8, 8))(table([row]))


def test_what_cannot_be_encoded_is_told_by_name(rgb, monkeypatch):
    def fail(pipe, images, *size):
        raise NonFinite("the encoder makes NaN of it")

    monkeypatch.setattr("shielded.spaces.encode", fail)
    load = partial(_pipe, str(rgb), "cpu", "float32")
    rows = [{"place": k, "id": str(k), "sha256": "0", "picture": bytes(192)} for k in range(2)]
    made = Encoder(load, {}, (8, 8))(table(rows)).to_pylist()
    assert [row["reason"] for row in made] == ["the encoder makes NaN of it"] * 2
    assert [row["latent"] for row in made] == [None, None]


def test_without_ray_the_command_says_how_to_get_it(tmp_path, sources, rgb, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    given = ["protect", "build", tmp_path / "set", *sources, "--model", rgb, "--ray"]
    result = CliRunner().invoke(app, [str(one) for one in given])
    assert result.exit_code == 2
    assert "pip install shielded-diffusion[ray]" in result.stderr
    assert not (tmp_path / "set").exists()
