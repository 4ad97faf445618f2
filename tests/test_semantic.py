# SPDX-License-Identifier: Apache-2.0
"""Semantic spaces: SPELL among features, by closed forms, automatic derivatives and real runs."""

from itertools import combinations

import pytest
import torch
from torch.autograd.functional import jacobian

import shielded.pull
from families import FAMILIES
from ideal import CASES, Pipe, ideal, sample
from shielded import Shields, Spell, load
from shielded.errors import BadInput, NonFinite, ShapeMismatch
from shielded.guidance import Step
from shielded.metrics import SmallNet
from shielded.pull import newton, pulled
from shielded.repel import project
from shielded.spaces import Colour, Location, Network, Semantic, Style, encode, fingerprint

SHAPE = (5, 3, 4, 4)
FAMILY_NAMES = (
    "stable_diffusion",
    "stable_diffusion_xl",
    "stable_diffusion_3",
    "pixart_alpha",
    "sana",
    "flux",
    "qwen_image",
    "deepfloyd_if",
)


class Linear:
    """u = A x of flattened pictures."""

    name, unit = "linear", False

    def __init__(self, a):
        self.a = a

    def __call__(self, pictures):
        return pictures.flatten(1) @ self.a.to(pictures).T


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(seed=0, count=5):
    """Far within the range, so that nothing is clipped."""
    return 0.05 * torch.tanh(noise(count, *SHAPE[1:], seed=seed))


def space(embedding):
    return Semantic(embedding, decoder=lambda x: x)


def step(x0):
    return Step(noise(*x0.shape, seed=9), x0, 0.6, 0.8, (None,) * len(x0))


def orthonormal(f, d=48, seed=3):
    return torch.linalg.qr(noise(d, f, seed=seed)).Q.T


@pytest.mark.parametrize("f", [1, 2, 7, 48])
def test_in_a_linear_space_the_move_is_eq_5_there(f):
    """One shield: with orthonormal rows A the move is A^T times Eq. 5 among the features."""
    a, x = orthonormal(f), images()
    u = x.flatten(1) @ a.T
    z = u[:1] + 0.3 * torch.nn.functional.normalize(noise(1, f, seed=5), dim=1)
    r = 0.7 * float((u - z).norm(dim=1).median()) + 0.2
    seen = space(Linear(a))
    shift = Spell(Shields.images(z), radius=r, space=seen).shift(step(x))
    gap = u - z
    d = gap.norm(dim=1, keepdim=True)
    delta = torch.relu(r / d - 1) * gap @ a
    assert torch.allclose(shift.delta, delta, atol=1e-5)
    assert torch.equal(shift.active[:, None] > 0, d < r)
    assert 0 < int((d < r).sum())


def test_where_everything_is_seen_it_is_spell():
    """The identity: the moves of plain SPELL, overlapping shields included."""
    x, everything = images(), space(Linear(torch.eye(48)))
    for shields in (Shields.batch(), Shields.images(images(4, 9).flatten(1)) + Shields.batch()):
        r = 1.2 * float(torch.pdist(x.flatten(1)).median())
        plain = Spell(shields, radius=r).shift(step(x))
        found = Spell(shields, radius=r, space=everything).shift(step(x))
        assert torch.equal(found.active, plain.active)
        assert bool((plain.active > 1).any())
        assert torch.allclose(found.delta, plain.delta, atol=2e-5)


@pytest.mark.parametrize("seed", range(4))
def test_one_step_reaches_the_surface_to_first_order(seed):
    """n . A delta = |y - u| for any A, and no shorter delta does that."""
    a, x = noise(6, 48, seed=seed), images(seed)
    way = 0.05 * noise(5, 6, seed=seed + 10)
    delta = newton(space(Linear(a)), x, way)
    length = way.norm(dim=1)
    assert torch.allclose(((delta @ a.T) * way).sum(1) / length, length, rtol=1e-5)
    v = (way / length[:, None]) @ a
    assert torch.allclose(delta.norm(dim=1), length / v.norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize(
    "embedding", [Colour(), Location(2), Style(lambda x: torch.tanh(x)), Network(SmallNet())]
)
def test_the_pull_is_the_jacobian_transposed(embedding):
    x = 0.9 * torch.tanh(noise(2, 3, 32, 32)) if isinstance(embedding, Network) else images(count=2)
    seen = Semantic(embedding, decoder=lambda z: 0.5 * z, chunk=1)
    n = noise(*seen.features(x).shape, seed=2)
    for b in range(2):

        def u(z):
            return seen._embed(seen._look(z[None]))[0]

        j = jacobian(u, x[b].float()).flatten(1)
        assert torch.allclose(seen.pull(x, n)[b], n[b] @ j.double(), rtol=1e-4, atol=1e-6)
        assert float(j.norm()) > 1e-3


def test_colour_does_not_see_where_and_location_does_not_see_which_colour():
    x = 15 * images(count=1).float()
    swapped = x.flip(2)
    tinted = -0.5 * x
    assert torch.allclose(Colour()(x), Colour()(swapped), atol=1e-6)
    assert not torch.allclose(Colour()(x), Colour()(tinted), atol=1e-2)
    assert torch.allclose(Location(2)(x), Location(2)(tinted), atol=1e-3)
    assert not torch.allclose(Location(2)(x), Location(2)(swapped), atol=1e-2)
    rolled = x.roll((1, 2), (2, 3))  # maps of single pixels: a shift only permutes the places
    pointwise = Style(lambda y: torch.tanh(y))
    assert torch.allclose(pointwise(x), pointwise(rolled), atol=1e-6)
    gram = torch.einsum("kp,lp->kl", *[torch.tanh(x).flatten(2)[0]] * 2) / 16
    assert float(pointwise(x).norm()) == pytest.approx(float(gram.norm()), rel=1e-6)


@pytest.mark.parametrize("embedding", [Colour(), Location(), Style(), Network(SmallNet())])
def test_a_batch_is_apart_in_the_space_that_was_asked_for(embedding):
    pipe = load("tiny-sprites")
    seen = Semantic(embedding)
    seen.bind(pipe)
    call = {"num_inference_steps": 6, "num_images_per_prompt": 5, "output_type": "latent"}

    def made(guidance=None):
        given = call | {"generator": [torch.Generator().manual_seed(k) for k in range(5)]}
        if guidance is None:
            return pipe("red potion", **given).images, None
        with guidance.on(pipe) as run:
            return pipe("red potion", **given).images, run

    plain, _ = made()
    r = float(torch.pdist(seen.measure(plain)).median())
    guided, run = made(Spell(Shields.batch(), radius=r, space=seen))
    assert float(torch.pdist(seen.measure(plain)).min()) < 0.9 * r
    for a, b in combinations(range(5), 2):
        d = (seen.measure(guided[a : a + 1]) - seen.measure(guided[b : b + 1])).norm()
        assert float(d) >= r * (1 - 2e-5)
    assert all(c.clear for c in run.certificates)
    assert len(run.trace.records) == 6


def test_inactive_it_costs_no_backward_pass_and_changes_no_bit(monkeypatch):
    pipe = load("tiny-sprites")
    asked, plain = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a: asked.append(1) or plain(*a))

    def made(radius):
        generator = [torch.Generator().manual_seed(k) for k in range(2)]
        call = {"num_inference_steps": 3, "generator": generator, "output_type": "latent"}
        if radius is None:
            return pipe(["sword", "sword"], **call).images
        with Spell(Shields.batch(), radius=radius, space=Semantic(Colour())).on(pipe):
            return pipe(["sword", "sword"], **call).images

    assert torch.equal(made(1e-6), made(None))
    assert not asked
    made(0.5)
    assert asked


def test_every_looks_at_every_so_many_calls():
    spell = Spell(Shields.batch(), radius=9.0, space=space(Colour()), every=3)
    spell.begin()
    seen = [spell.shift(step(images())) is not None for _ in range(7)]
    assert seen == [True, False, False, True, False, False, True]
    spell.begin()
    assert spell.shift(step(images())) is not None


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_pipelines_with_autoencoders(name):
    """Distances of the decoded pictures, as the pipeline itself decodes them."""
    family = FAMILIES[name]()
    seen = Semantic(Colour(), size=(16, 16))
    seen.bind(family.pipe)
    plain = family.run(0, latents=True)
    u = seen.measure(plain)
    r = 1.5 * float(torch.pdist(u).median())
    with Spell(Shields.batch(), radius=r, space=seen).on(family.pipe) as run:
        moved = family.run(0, latents=True)
    assert float(torch.pdist(seen.measure(moved)).min()) >= r * (1 - 2e-5)
    assert all(c.clear for c in run.certificates)
    assert not torch.equal(moved, plain)


def test_a_space_of_two_open_blocks_decodes_for_each_as_its_pipeline_does():
    one, other = FAMILIES["stable_diffusion"](), FAMILIES["stable_diffusion"]()
    torch.manual_seed(5)
    for weight in other.pipe.vae.decoder.parameters():
        weight.data.copy_(0.3 * torch.randn_like(weight))
    seen = Semantic(Colour(), size=(16, 16))
    seen.bind(one.pipe)
    plain = one.run(0, latents=True)
    u = seen.measure(plain)
    r = 1.5 * float(torch.pdist(u).median())
    spell = Spell(Shields.batch(), radius=r, space=seen)
    with spell.on(one.pipe) as run, Spell(radius=r, space=seen).on(other.pipe):
        other.run(0, latents=True)
        moved = one.run(0, latents=True)
    distances = [c.distance for c in run.certificates]
    seen.bind(one.pipe)
    u = seen.measure(moved)
    assert float(torch.pdist(u).min()) >= r * (1 - 2e-5)
    gap = torch.cdist(u, u).fill_diagonal_(float("inf")).amin(1)
    assert distances == pytest.approx(gap.tolist(), rel=1e-4)


DATA = 0.4 * torch.randn(24, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_scheduler_ends_outside_and_is_untouched_where_nothing_is_near(case):
    seen = space(Colour())
    plain = sample(case.make(), ideal(DATA), SHAPE)
    r = 0.8 * float(torch.pdist(seen.measure(plain)).median())
    pipe = Pipe(case.make())
    far = Shields.images(torch.full((1, 3), 9.0))
    with Spell(far, radius=1.0, space=seen).on(pipe):
        assert torch.equal(sample(pipe.scheduler, ideal(DATA), SHAPE), plain)
    with Spell(Shields.batch(), radius=r, space=seen).on(pipe) as run:
        moved = sample(pipe.scheduler, ideal(DATA), SHAPE)
    assert float(torch.pdist(seen.measure(moved)).min()) >= r * (1 - 2e-5)
    assert all(c.clear for c in run.certificates)


def test_a_denoiser_function_is_guided_and_lands():
    seen, clean = space(Colour()), ideal(DATA)
    guided = Spell(Shields.batch(), radius=0.3, space=seen).denoiser(
        lambda x, sigma: clean(x, 1.0, sigma)
    )
    x = 3 * noise(*SHAPE)
    for sigma, after in ((3.0, 1.0), (1.0, 0.2), (0.2, 0.0)):
        x = x + (after - sigma) * (x - guided(x, sigma)) / sigma
    x = guided.finish(x)
    assert float(torch.pdist(seen.measure(x)).min()) >= 0.3 * (1 - 2e-5)
    assert all(c.clear for c in guided.run.certificates)
    bare = Spell(Shields.batch(), radius=0.3, space=Semantic(Colour()))
    with pytest.raises(BadInput, match="needs a decoder"):
        bare.correct(x)
    corrected = Spell(Shields.batch(), radius=0.3, space=seen).correct(images())
    assert float(torch.pdist(seen.features(corrected)).min()) >= 0.3 * (1 - 1e-3)


def test_a_gradient_that_vanishes_or_blows_up_leaves_the_image_and_says_so():
    class Flat:
        name, unit = "flat", False

        def __call__(self, pictures):
            return 0 * pictures.mean((2, 3)) + torch.tensor([1.0, 2.0, 3.0])

    class Steep(Flat):
        def __call__(self, pictures):
            x = pictures.mean((2, 3))
            return torch.sqrt((x - x.detach()).abs())  # an infinite slope at 0

    for embedding in (Flat(), Steep()):
        spell = Spell(Shields.batch(), radius=0.4, space=space(embedding))
        shift = spell.shift(step(images()))
        assert torch.equal(shift.delta, torch.zeros(5, 48).double()), "nothing usable to go by"
        assert bool((shift.active > 0).all()), "and the trace shows that they are inside"
        landing = spell.land(images(), space(embedding), step(images()))
        assert not any(n.clear for n in landing.nearest[1:])

    class Weak(Flat):
        def __call__(self, pictures):
            return 1e-6 * pictures.mean((2, 3))

    delta = Spell(Shields.batch(), radius=0.4, space=space(Weak())).shift(step(images())).delta
    most = shielded.pull.ROUNDS * shielded.pull.LIMIT * 48**0.5
    assert bool((delta.norm(dim=1) <= most * (1 + 1e-9)).all())


def test_a_history_is_of_one_space(tmp_path):
    """Features of one space would pass for those of another, or for latents, of the same shape."""
    pipe = load("tiny-sprites")
    call = {"num_inference_steps": 2, "output_type": "latent"}
    spell = Spell(Shields.history(), radius=0.2, space=Semantic(Colour()))
    with spell.on(pipe):
        spell.forget()  # of images, not of the space that the next ones are measured in
        pipe("book", generator=torch.Generator().manual_seed(3), **call)
    spell.shields.histories[0].save(tmp_path / "h.safetensors")
    for space in (None, Semantic(Style())):
        kept = Shields.history(path=tmp_path / "h.safetensors")
        name = "latent" if space is None else "style"
        with (
            pytest.raises(ShapeMismatch, match=f"'colour'.*'{name}': call forget"),
            Spell(kept, radius=0.2, space=space).on(pipe),
        ):
            pass
        assert len(kept.histories[0]) == 1, "nothing is lost"
        kept.histories[0].forget()
        Spell(kept, radius=0.2, space=space).prepare(pipe)
    kept = Shields.history(path=tmp_path / "h.safetensors")
    with Spell(kept, radius=0.2, space=Semantic(Colour())).on(pipe) as run:
        pipe("book", generator=torch.Generator().manual_seed(3), **call)
    assert run.certificates[0].source == "history"


def test_histories_and_sets_hold_features(tmp_path):
    pytest.importorskip("lance")
    from PIL import Image

    from shielded.shields.store import ProtectedSet

    pipe, seen = load("tiny-sprites"), Semantic(Colour())
    seen.bind(pipe)
    spell = Spell(Shields.history(), radius=0.2, space=seen)
    call = {"num_inference_steps": 4, "output_type": "latent"}
    for _ in range(2):
        with spell.on(pipe) as run:
            out = pipe("book", generator=torch.Generator().manual_seed(3), **call).images
    assert spell.shields.histories[0].latents.shape == (2, 3)
    assert run.certificates[0].distance >= 0.2 * (1 - 1e-5)
    levels = (255 * (out[0] / 2 + 0.5).clamp(0, 1)).round().byte()
    picture = Image.fromarray(levels.permute(1, 2, 0).numpy())
    u = encode(pipe, [picture], space=seen)
    assert torch.allclose(u.double(), seen.measure(out), atol=1e-6)
    facts = fingerprint(pipe, space=seen)
    store = ProtectedSet.create(tmp_path / "set", facts["shape"], facts, dtype="float32")
    store.add(u, ["it"])
    keep_off = Spell(Shields.protected(tmp_path / "set"), radius=0.3, space=Semantic(Colour()))
    with keep_off.on(pipe) as run:
        pipe("book", num_inference_steps=4, generator=torch.Generator().manual_seed(3))
    (certificate,) = run.certificates
    assert certificate.reference == "it"
    assert certificate.distance >= 0.3 * (1 - 1e-5)
    for other in (None, Semantic(Location())):
        with pytest.raises(ShapeMismatch, match="does not fit"):
            with Spell(Shields.protected(tmp_path / "set"), radius=0.3, space=other).on(pipe):
                pass


def test_bad_input():
    with pytest.raises(BadInput, match="needs a decoder"):
        Semantic(Colour()).features(images())
    with pytest.raises(BadInput, match="chunk"):
        Semantic(Colour(), chunk=0)
    with pytest.raises(BadInput, match="grid"):
        Location(1)
    with pytest.raises(BadInput, match="every"):
        Spell(Shields.batch(), radius=1.0, every=0)

    class Nothing:
        name, unit = "nothing", True

        def __call__(self, pictures):
            return torch.zeros(len(pictures), 4)

    with pytest.raises(BadInput, match="all 0"):
        space(Nothing()).features(images())

    class Broken(Nothing):
        def __call__(self, pictures):
            return torch.full((len(pictures), 4), torch.nan)

    with pytest.raises(NonFinite, match="NaN"):
        space(Broken()).features(images())


def test_rounds_end_when_images_are_outside():
    """A curved space: one step is not enough, three are better, and none is made in vain."""

    class Curved:
        name, unit = "curved", False

        def __call__(self, pictures):
            return torch.tanh(3 * pictures.mean((2, 3)))

    seen, x = space(Curved()), images()
    u = seen.features(x)
    z = u.mean(0, keepdim=True)
    everyone = torch.ones(5, 1, dtype=torch.bool)
    r2 = torch.tensor([0.5**2], dtype=torch.float64)

    def goal(v):
        return project(v, z, r2, everyone, lambda: noise(5, 3))

    gaps = []
    for rounds in (1, 3):
        delta, near = pulled(seen, x, u, goal, rounds=rounds)
        arrived = seen.features(x + delta.reshape(x.shape))
        gaps.append(float((0.5 - (arrived - z).norm(dim=1)).clamp(min=0).max()))
        assert near.shape == (5, 1)
    assert gaps[1] < 0.2 * gaps[0]
    assert pulled(seen, x, 100 + u, lambda v: (v, v[:, :1] < 0)) is None
