# SPDX-License-Identifier: Apache-2.0
"""Kernel repulsion against automatic derivatives, on every kind of sampler, and in its spaces."""

import math

import pytest
import torch

from families import FAMILIES
from ideal import CASES, Pipe, ideal, sample
from shielded import load
from shielded.errors import BadInput
from shielded.guidance import Step
from shielded.methods import KernelRepulsion
from shielded.methods.kernel import repulsion
from shielded.metrics import MostDiverse, frechet
from shielded.spaces import Colour, Location, Semantic, Style

DATA = torch.randn(24, 48, generator=torch.Generator().manual_seed(1))
SHAPE = (6, 3, 4, 4)
SOME = ["DDPM", "PNDM", "EulerD", "Heun", "UniPC", "FlowMatchEuler", "EDMEuler", "SCM", "LCM", "CM"]
ONE_EACH = [next(case for case in CASES if case.cls.startswith(name)) for name in SOME]
FAMILY = ["stable_diffusion", "stable_diffusion_3", "flux", "dit", "sana", "deepfloyd_if", "ddim"]


def points(n=5, f=7, seed=0):
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(u):
    """h of the median heuristic, by hand."""
    d = sorted(float((a - b).norm()) for i, a in enumerate(u) for b in u[:i])
    half = len(d) // 2
    m = d[half] if len(d) % 2 else (d[half - 1] + d[half]) / 2
    return m * m / math.log(len(u))


@pytest.mark.parametrize("variant", ["kernel", "score"])
@pytest.mark.parametrize("n", [2, 5])
def test_the_push_is_the_gradient_by_which_the_kernel_falls(variant, n):
    u = points(n)
    h = spread(u)
    for i in range(n):
        free = u[i].clone().requires_grad_()
        k = torch.exp(-(free - u).square().sum(1) / h)
        k = torch.cat([k[:i], k[i + 1 :], torch.ones(1).double()])  # its own kernel is 1
        (-(k.sum().log() if variant == "score" else k.sum())).backward()
        assert torch.allclose(repulsion(u, variant)[i], free.grad, atol=1e-10)
    assert float(repulsion(u, variant).norm()) > 1e-3
    assert not repulsion(torch.ones(3, 4).double(), variant).any()


@pytest.mark.parametrize("embedding", [Colour(), Location(2), Style(torch.tanh)])
def test_it_is_pushed_back_through_embedding_and_decoder(embedding):
    """The shift is (sigma^2 / alpha) strength times the gradient with respect to x0."""
    x = 0.5 * torch.tanh(points(4, 48)).reshape(4, 3, 4, 4)
    space = Semantic(embedding, decoder=lambda z: 0.7 * z.flip(3), chunk=3)
    u = embedding(0.7 * x.float().flip(3)).double()
    h, delta = spread(u), []
    for i in range(4):
        free = x[i : i + 1].clone().requires_grad_()
        own = embedding(0.7 * free.float().flip(3)).double()
        others = torch.cat([u[:i], u[i + 1 :]])
        k = torch.exp(-(own - others).square().sum(1) / h)
        (-k.sum()).backward()
        delta.append(0.64 / 0.6 * 30 * free.grad.flatten())
    step = Step(x, x, 0.6, 0.8, (None,) * 4)
    shift = KernelRepulsion(space, 30.0).shift(step)
    assert torch.allclose(shift.delta, torch.stack(delta), rtol=1e-3, atol=1e-5)
    assert float(shift.delta.norm()) > 1e-3
    pulled = KernelRepulsion(space, 30.0, attract=True).shift(step)
    assert torch.equal(pulled.delta, -shift.delta)
    half = KernelRepulsion(space, 30.0, schedule=lambda level: level).shift(step)
    assert torch.allclose(half.delta, step.noise_level * shift.delta, atol=1e-12)


def test_groups_do_not_see_each_other():
    x = points(5, 12).reshape(5, 3, 2, 2)
    shift = KernelRepulsion(strength=50.0).shift(Step(x, x, 0.6, 0.8, ("a", "b", "a", "a", "c")))
    assert shift.active.tolist() == [2, 0, 2, 2, 0]
    alone = repulsion(x.flatten(1)[[0, 2, 3]])
    assert torch.allclose(shift.delta[[0, 2, 3]], 50.0 * 0.64 / 0.6 * alone)
    assert not shift.delta[[1, 4]].any()
    outside = KernelRepulsion(window=(0.5, 0.2))
    assert outside.shift(Step(x, x, 0.6, 0.8, (None,) * 5)) is None


@pytest.mark.parametrize("case", ONE_EACH, ids=[case.name for case in ONE_EACH])
def test_off_is_bit_identical_and_on_is_finite_on_every_scheduler(case):
    plain = sample(case.make(), ideal(DATA), SHAPE)
    pipe = Pipe(case.make())
    with KernelRepulsion(strength=0.0).on(pipe):
        assert torch.equal(sample(pipe.scheduler, ideal(DATA), SHAPE), plain)
    space = Semantic(Colour(), decoder=lambda x: x)
    for guidance in (KernelRepulsion(strength=20.0), KernelRepulsion(space, 3.0, "score")):
        with guidance.on(pipe) as run:
            pushed = sample(pipe.scheduler, ideal(DATA), SHAPE)
        assert torch.isfinite(pushed).all()
        assert run.trace.intervened().all()


@pytest.mark.parametrize("name", FAMILY)
def test_it_works_on_pipelines(name):
    family = FAMILIES[name]()
    space = Semantic(Colour(), size=(16, 16))
    plain = family.run(seed=0)
    with KernelRepulsion(space, 0.0).on(family.pipe):
        assert torch.equal(family.run(seed=0), plain)
    with KernelRepulsion(space, 100.0).on(family.pipe) as run:
        pushed = family.run(seed=0)
    assert torch.isfinite(pushed).all()
    assert not torch.equal(pushed, plain)
    assert len(run.trace.records) >= family.steps


def test_a_denoiser_function_is_pushed_by_sigma_squared_and_within_its_groups():
    def model(x, sigma):
        return x / (1 + sigma**2)

    x, sigma = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)), 1.5
    assert torch.equal(KernelRepulsion(strength=0.0).denoiser(model)(x, sigma), model(x, sigma))
    guided = KernelRepulsion(strength=20.0).denoiser(model, groups=list("aaabbb"))
    x0 = model(x, sigma).double().flatten(1)
    push = torch.cat([repulsion(x0[:3]), repulsion(x0[3:])])
    out = guided(x, sigma).double().flatten(1)
    assert torch.allclose(out, x0 + 20.0 * sigma**2 * push, atol=1e-6)
    assert float((out - x0).norm(dim=1).min()) > 1e-3


@pytest.mark.parametrize(("embedding", "strength"), [(Colour(), 3.0), (Location(), 10.0)])
def test_images_spread_in_the_space_that_was_asked_for(embedding, strength):
    pipe = load("tiny-sprites")
    seen = Semantic(embedding)
    seen.bind(pipe)

    def made(guidance):
        generator = [torch.Generator().manual_seed(k) for k in range(6)]
        call = {"num_inference_steps": 8, "generator": generator, "output_type": "latent"}
        with guidance.on(pipe):
            return torch.pdist(seen.measure(pipe(["red potion"] * 6, **call).images))

    plain = made(KernelRepulsion(seen, 0.0))
    assert float(made(KernelRepulsion(seen, strength)).mean()) > 1.15 * float(plain.mean())
    together = made(KernelRepulsion(seen, strength, attract=True))
    assert float(together.mean()) < 0.9 * float(plain.mean())


def test_the_most_diverse_set_is_at_distance_0_and_less_diverse_ones_further():
    draw = torch.Generator().manual_seed(0)
    colours = torch.rand(64, 3, 1, 1, generator=draw) * 2 - 1
    most = colours.expand(-1, -1, 8, 8) + 0.01 * torch.randn(64, 3, 8, 8, generator=draw)
    gap = MostDiverse(most)
    assert max(gap(most).values()) < 1e-6
    some = [gap(share * colours + most - colours)["colour"] for share in (0.9, 0.5, 0.1)]
    assert 0 < some[0] < some[1] < some[2]
    mean = Colour()(most)
    assert some[2] == pytest.approx(frechet(mean, Colour()(0.1 * colours + most - colours)))
    assert list(gap.spaces) == ["colour", "location", "style"]
    with pytest.raises(BadInput, match="two pictures"):
        MostDiverse(most[:1])


def test_bad_input():
    for bad in ({"strength": -1}, {"strength": math.nan}, {"variant": "x"}, {"window": (0, 1)}):
        with pytest.raises(BadInput, match=next(iter(bad))):
            KernelRepulsion(**bad)
