# SPDX-License-Identifier: Apache-2.0
"""Every bench in its smoke size, and the metrics against closed forms and other code."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from shielded.bench import overhead, overlap, scale, sprites, takedown
from shielded.bench.kit import clock, training_set
from shielded.bench.kit.sample import draw
from shielded.metrics import Pixels, ResNet56, precision_recall, vendi
from shielded.models import load
from shielded.shields import Shields
from shielded.spell import Spell

DATA = Path(__file__).parents[2] / "shared" / "data"


def test_vendi_of_known_sets():
    assert vendi(torch.ones(7, 5)) == pytest.approx(1)
    assert vendi(torch.eye(9)) == pytest.approx(9)
    assert vendi(torch.eye(4).repeat(3, 1)) == pytest.approx(4)
    # Two groups of sizes 3 and 1: entropy of (3/4, 1/4), of any order.
    x = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    assert vendi(x) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert vendi(x, q=2) == pytest.approx(1 / (0.75**2 + 0.25**2))
    assert vendi(x, q=math.inf) == pytest.approx(4 / 3)


def test_vendi_agrees_with_its_authors():
    vendi_score = pytest.importorskip("vendi_score.vendi")
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    for q in (1, 2, 0.5):
        theirs = vendi_score.score_X(x.numpy(), q=q) if q == 1 else None
        if theirs is None:
            unit = torch.nn.functional.normalize(x, dim=1).double().numpy()
            theirs = vendi_score.score_K(unit @ unit.T, q=q)
        assert vendi(x, q=q) == pytest.approx(theirs, rel=1e-5)


def test_precision_and_recall_of_known_sets():
    line = torch.arange(40.0)[:, None]
    assert precision_recall(line, line) == (1, 1)
    assert precision_recall(line, line + 1000) == (0, 0)
    half = torch.cat([line[:20], line[:20] + 1000])
    precision, recall = precision_recall(line, half)
    assert precision == pytest.approx(0.5)
    assert 0.5 <= recall < 0.65


def test_ink():
    white = torch.ones(1, 3, 2, 2)
    assert not Pixels()(white).any()
    assert torch.equal(Pixels()(-white), torch.ones(1, 12))


def test_the_feature_network_takes_every_published_weight():
    """A wrong shape or a missing layer would raise: loading is strict."""
    file = next((DATA / "cifar_resnet").glob("*.safetensors"), None)
    if file is None:
        pytest.skip("the feature network's weights are not beside the repository")
    features = ResNet56(file)(torch.rand(8, 3, 32, 32) * 2 - 1)
    assert features.shape == (8, 64)
    assert features.isfinite().all()
    assert float(features.std(0).mean()) > 0.01


def test_tiles_are_put_on_white(tmp_path):
    rgba = np.zeros((2, 4, 4, 4), np.uint8)
    rgba[1, ..., 0] = rgba[1, ..., 3] = 255
    np.savez(tmp_path / "tiles.npz", rgba=rgba)
    tiles = training_set.tiles(tmp_path / "tiles.npz")
    assert torch.equal(tiles[0], torch.ones(3, 4, 4))
    assert torch.allclose(tiles[1, :, 0, 0], torch.tensor([1.0, -1, -1]))


def test_overlap_smoke():
    table = overlap.run(smoke=True)
    assert [row["project: inside"] for row in table.rows] == ["0.00%"] * len(table.rows)
    one, many = (next(r for r in table.rows if (r["D"], r["K"]) == (256, k)) for k in (1, 64))
    assert one["sum: mean move"] == pytest.approx(one["project: mean move"])
    assert many["sum: mean move"] > 5 * many["project: mean move"]


def test_sprites_smoke(tmp_path):
    table = sprites.run(smoke=True)
    plain, shielded = table.rows
    assert shielded["nearest pair"] > plain["nearest pair"]
    assert shielded["pairs within r, not reported"] == 0
    table.write(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".md", ".csv", ".json"}


def test_takedown_smoke():
    for row in takedown.run(smoke=True).rows:
        assert row["plain images inside"] >= 1
        assert row["inside"] == 0
        assert row["of them bit-identical"] == row["never moved"]


def test_overhead_smoke():
    table = overhead.run(smoke=True)
    assert [row["runs"] for row in table.rows] == [2, 2, 2]
    for row in table.rows:  # a run spends some of its time in SPELL, and not all of it
        assert 0 < float(row["own time in the run"].rstrip("%")) < 100


def test_the_clocks_leave_the_scheduler_as_it_was():
    pipe = load("tiny-sprites")
    kind, before = type(pipe.scheduler), set(vars(pipe.scheduler))
    watched = clock.Watched(Spell(Shields.batch(), radius=1.0))
    latents, run = draw(pipe, "sword", range(2), watched, num_inference_steps=2)
    plain, _ = draw(pipe, "sword", range(2), num_inference_steps=2)
    assert type(pipe.scheduler) is kind
    assert "step" not in vars(pipe.scheduler)
    assert before <= set(vars(pipe.scheduler))
    assert torch.equal(latents, plain)
    assert len(run.certificates) == 2
    assert watched.whole.seconds > watched.bare.seconds > 0


def test_scale_smoke():
    """Exact searches find every hit that brute force finds; the screen is one of them."""
    pytest.importorskip("lance")
    pytest.importorskip("faiss")
    table = scale.run(smoke=True)
    assert [row["search"] for row in table.rows] == [*scale.METHODS]
    assert all(row["hits"] > 100 for row in table.rows)
    exact = [row for row in table.rows if row["search"] in ("brute force", "panorama", "screen")]
    assert [row["recall"] for row in exact] == ["1.0000"] * 3
    assert scale.apart(scale.peak)() < 4 * 2**30


def test_sizes_that_are_done_are_not_measured_again(tmp_path, monkeypatch):
    pytest.importorskip("lance")
    monkeypatch.setattr(scale, "METHODS", ("brute force", "screen"))
    first = scale.run(smoke=True, work=tmp_path)
    monkeypatch.setattr(scale, "measure", None)
    assert scale.run(smoke=True, work=tmp_path).rows == first.rows
    assert len(first.rows) == 2


def test_trajectories_of_an_ideal_denoiser_end_at_their_images(tmp_path):
    pytest.importorskip("lance")
    store = scale.grow(tmp_path / "set", 64, lambda text: None)
    radius = scale.near_radius(store)
    path = list(scale.trajectory(store, radius, 0))
    z = torch.from_numpy(np.concatenate([x for p in store.parts() for _, x in store.read(p)]))
    first, last = (torch.cdist(path[k], z.double()).amin(1) / radius for k in (0, -1))
    assert torch.allclose(last[:4], torch.full((4,), 0.8, dtype=torch.float64), atol=0.02)
    assert bool((last[4:] > 1.2).all())
    assert bool((first > 1).all())
    assert scale.fields(50, 3).var() == pytest.approx(1, rel=0.05)
