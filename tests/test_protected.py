# SPDX-License-Identifier: Apache-2.0
"""Shields around a protected set on disk: the same images as with the set in memory."""

import numpy as np
import pytest
import torch

from families import FAMILIES
from shielded import Shields, Spell
from shielded.errors import BadInput, ShapeMismatch
from shielded.landing import TOLERANCE
from shielded.shields.field import Searched
from shielded.shields.search.kept import load

pytest.importorskip("lance")
from shielded.shields.store import ProtectedSet


def latents(n, d=64, seed=0):
    """Values that float16 holds exactly, so that disk and memory agree to the bit."""
    x = torch.randn(n, 1, 8, d // 8, generator=torch.Generator().manual_seed(seed))
    return x.half().float()


@pytest.fixture
def store(tmp_path):
    made = ProtectedSet.create(tmp_path / "set", (1, 8, 8), radius=6.0)
    made.add(latents(300), ids=[f"a{k}" for k in range(300)])
    made.add(latents(200, seed=1), ids=[f"b{k}" for k in range(200)])
    return made


def near(z, seed=2, n=6):
    noise = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return z[:: len(z) // n][:n] + 0.2 * noise


def test_the_same_move_as_with_all_images_in_memory(store):
    z = torch.cat([latents(300), latents(200, seed=1)])
    x = near(z)
    disk = Spell(Shields.batch(radius=3.0) + Shields.protected(store.path)).correct(x)
    memory = Spell(Shields.batch(radius=3.0) + Shields.images(z, radius=6.0)).correct(x)
    assert not torch.equal(disk, x)
    assert torch.allclose(disk, memory, atol=1e-5)
    far = x + 100
    assert Spell(Shields.protected(store.path)).correct(far) is far


def test_what_is_returned_is_clear_of_every_image_on_disk(store):
    z = torch.cat([latents(300), latents(200, seed=1)]).flatten(1).double()
    spell = Spell(Shields.batch(radius=3.0) + Shields.protected(store.path))
    sampler = spell.denoiser(lambda x, sigma: x)
    images = sampler.finish(near(latents(300)))
    d = torch.cdist(images.flatten(1).double(), z)
    assert float(d.min()) >= 6.0 * (1 - TOLERANCE)
    for b, certificate in enumerate(sampler.run.certificates):
        assert certificate.clear
        if certificate.source == "protected":
            k = int(d[b].argmin())
            assert certificate.reference == (f"a{k}" if k < 300 else f"b{k - 300}")
            assert certificate.distance == pytest.approx(float(d[b].min()), rel=1e-6)


def test_images_with_radii_of_their_own(tmp_path):
    z = latents(40)
    radii = [None if k % 2 else 0.5 + k / 10 for k in range(40)]
    store = ProtectedSet.create(tmp_path / "set", (1, 8, 8))
    store.add(z, radii=radii)
    x = z + 0.01 * latents(40, seed=3)
    y = Spell(Shields.protected(store.path), radius=2.0).correct(x)
    expected = torch.tensor([2.0 if r is None else r for r in radii])
    own = (y - z).flatten(1).norm(dim=1)
    assert torch.allclose(own, expected, rtol=1e-4)
    with pytest.raises(BadInput, match="has no radius"):
        Spell(Shields.protected(store.path))


def test_the_radius_of_the_set_gives_way_to_the_one_asked_for(store):
    assert Shields.protected(store.path).sources[0].radius == 6.0
    assert Shields.protected(store.path, radius=2.0).sources[0].radius == 2.0


def test_changes_are_taken_up_between_generations(store):
    spell = Spell(Shields.protected(store.path))
    sampler = spell.denoiser(lambda x, sigma: x)
    new = (latents(1, seed=9) + 50).half().float()
    assert torch.equal(sampler.finish(new), new)
    writer = ProtectedSet.open(store.path)
    writer.add(new, ids=["new"])
    spell.begin()
    moved = sampler.finish(new)
    assert float((moved - new).norm()) == pytest.approx(6.0, rel=1e-4)
    writer.remove(["new"])
    writer.compact()
    spell.begin()
    assert torch.equal(sampler.finish(new), new)


def test_sketches_are_made_once_and_follow_the_set(store, monkeypatch):
    """Only what was added since is read; what was removed is gone; damage is made again."""
    radius = 6.0
    first, _ = load(store, radius)
    read = []
    plain = ProtectedSet.read
    monkeypatch.setattr(
        ProtectedSet,
        "read",
        lambda self, part, *size: read.append(part.name) or plain(self, part, *size),
    )
    again, _ = load(ProtectedSet.open(store.path), radius)
    assert read == []
    assert torch.equal(first.sketch.core, again.sketch.core)
    store.add(latents(50, seed=4), ids=[f"c{k}" for k in range(50)])
    store.remove([f"a{k}" for k in range(0, 300, 3)])
    screen, address = load(store, radius)
    assert len(read) == 1
    live = np.concatenate([part.rows for part in store.parts()])
    assert address.tolist() == live.astype(np.int64).tolist()
    z = torch.from_numpy(np.array(store.take(live))).double()
    x = near(latents(300)).flatten(1).double()
    inside = (torch.cdist(x, z) < radius).any(0).nonzero()[:, 0]
    assert set(inside.tolist()) <= set(screen.near(x).row.tolist())
    for file in (store.path / "screen").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    rebuilt, _ = load(store, radius)
    assert torch.equal(rebuilt.radius, screen.radius)
    assert len(read) == 4


def test_sketches_for_a_small_radius_are_made_anew_for_a_large_one(tmp_path):
    """Once: those for a large one serve a small one, too, and those of before are as sharp."""
    z = torch.randn(1000, 784, generator=torch.Generator().manual_seed(0))
    z *= torch.arange(1, 785) ** -0.8
    r = float(torch.quantile(torch.pdist(z), 3e-4))
    store = ProtectedSet.create(tmp_path / "set", (784,))
    store.add(z)
    small = load(store, r / 8)[0].sketch.core.shape[1]
    assert load(store, r / 5)[0].sketch.core.shape[1] == small
    large = load(store, r)[0].sketch.core.shape[1]
    assert large > small
    assert load(store, r / 8)[0].sketch.core.shape[1] == large
    assert load(store, 0.0)[0].sketch.core.shape[1] == large


def test_smaller_sketches_lose_nothing(store):
    x = near(latents(300)).flatten(1).double()
    fine, _ = load(store, 6.0, dtype=torch.float32)
    for dtype, size in ((torch.bfloat16, 2), (torch.int8, 1)):
        coarse, _ = load(store, 6.0, dtype=dtype)
        assert coarse.sketch.core.dtype == dtype
        assert coarse.sketch.core.nbytes == fine.sketch.core.nbytes / 4 * size
        assert set(fine.near(x).row.tolist()) == set(coarse.near(x).row.tolist())


def test_an_image_that_a_pipeline_makes_is_kept_away_from(tmp_path):
    """End to end: protect what a seed gives, run the seed again; nothing else changes."""
    family = FAMILIES["stable_diffusion"]()
    plain = family.run(latents=True)
    store = ProtectedSet.create(tmp_path / "set", tuple(plain.shape[1:]), dtype="float32")
    store.add(plain[:1], ids=["first"])
    apart = float((plain[0] - plain[1]).norm())
    with Spell(Shields.protected(store.path), radius=apart / 2).on(family.pipe) as run:
        shielded = family.run(latents=True)
    assert torch.equal(shielded[1], plain[1])
    assert float((shielded[0] - plain[0]).norm()) >= apart / 2 * (1 - TOLERANCE)
    assert [c.reference for c in run.certificates] == ["first", "first"]
    assert [c.intervened for c in run.certificates] == [True, False]


def test_a_set_made_by_another_encoder_is_refused(tmp_path):
    from shielded.spaces import fingerprint

    pipe = FAMILIES["stable_diffusion"]().pipe
    other = fingerprint(FAMILIES["stable_diffusion_3"]().pipe)
    store = ProtectedSet.create(tmp_path / "set", (4, 8, 8), fingerprint=other, radius=1.0)
    with (
        pytest.raises(ShapeMismatch, match="does not fit this pipeline"),
        Spell(Shields.protected(store.path)).on(pipe),
    ):
        pytest.fail("the block was entered")
    same = ProtectedSet.create(
        tmp_path / "fits", (4, 8, 8), fingerprint=fingerprint(pipe), radius=1.0
    )
    Spell(Shields.protected(same.path)).prepare(pipe)


def test_a_set_is_compared_at_the_size_of_its_own_pictures(tmp_path):
    """Which need not be the model's; a fingerprint without a size is told from one."""
    from shielded.spaces import fingerprint

    pipe = FAMILIES["stable_diffusion"]().pipe
    own, wide = fingerprint(pipe), fingerprint(pipe, 16, 32)
    assert own["size"] != wide["size"]
    made = ProtectedSet.create(tmp_path / "wide", wide["shape"], wide, radius=1.0)
    Shields.protected(made.path).check(pipe)
    bare = ProtectedSet.create(tmp_path / "bare", own["shape"], {**own, "size": None}, radius=1.0)
    with pytest.raises(ShapeMismatch, match="image size none against"):
        Shields.protected(bare.path).check(pipe)


def test_a_set_of_another_shape_is_refused(store):
    pipe = FAMILIES["stable_diffusion"]().pipe
    with (
        pytest.raises(ShapeMismatch, match="holds latents of shape"),
        Spell(Shields.protected(store.path)).on(pipe),
    ):
        pipe("a b", num_inference_steps=2, height=16, width=16)


@pytest.mark.parametrize("search", ["flat", "panorama", "ivfflat"])
def test_faiss_finds_what_the_screen_finds(store, search):
    """Exact kinds move images alike; a few cells may overlook some, and certificates say so."""
    pytest.importorskip("faiss")
    z = torch.cat([latents(300), latents(200, seed=1)])
    x = near(z, n=40)
    exact = Spell(Shields.protected(store.path)).correct(x)
    cells = 1 if search == "ivfflat" else 2
    spell = Spell(Shields.protected(store.path, search=search, nprobe=cells), landing=False)
    if search != "ivfflat":
        assert torch.allclose(spell.correct(x), exact, atol=1e-4)
    sampler = spell.denoiser(lambda x, sigma: x)
    images = sampler.finish(x)
    inside = torch.cdist(images.flatten(1).double(), z.flatten(1).double()).amin(1) < 6.0
    assert [not c.clear for c in sampler.run.certificates] == inside.tolist()
    assert bool(inside.any())


def test_a_search_leaves_out_what_is_known(store):
    """After a move only those are searched that the move did not know of."""
    pytest.importorskip("faiss")
    x = near(torch.cat([latents(300), latents(200, seed=1)]), n=40).flatten(1).double()
    for search in ("screen", "flat"):
        (source,) = Shields.protected(store.path, search=search).sources
        whole = source.references(x, range(40), 6.0)
        first = source.references(x[20:], range(20), 6.0)
        rest = source.others(x, range(40), 6.0, first)
        assert isinstance(source, Searched)  # so a field asks for the others alone
        assert 0 < len(first.ids) < len(whole.ids)
        assert sorted([*first.ids, *rest.ids]) == sorted(whole.ids)


def test_what_a_search_finds_may_stand_in_a_graph(store):
    """Searches run in inference mode; who samples with gradients needs to know nothing of it."""
    x = near(latents(300), n=8)
    plain = Spell(Shields.protected(store.path), radius=6.0).correct(x)
    x = x.requires_grad_()
    y = Spell(Shields.protected(store.path), radius=6.0).correct(x)
    assert torch.equal(y, plain)
    assert bool((y != x).any())
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert bool(slope.isfinite().all())


def test_all_cells_are_exact_and_bad_settings_are_named(store):
    pytest.importorskip("faiss")
    z = torch.cat([latents(300), latents(200, seed=1)])
    x = near(z)
    exact = Spell(Shields.protected(store.path)).correct(x)
    every = Shields.protected(store.path, search="ivfflat", nprobe=100)
    assert torch.allclose(Spell(every).correct(x), exact, atol=1e-4)
    with pytest.raises(BadInput, match="choose screen or one of"):
        Shields.protected(store.path, search="annoy")
    with pytest.raises(BadInput, match="one cell at least"):
        Spell(Shields.protected(store.path, search="ivfflat", nprobe=0)).correct(x)
