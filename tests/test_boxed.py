# SPDX-License-Identifier: Apache-2.0
"""Where finished images are clipped to a box, what counts is the picture, not the overshoot.

x0 may lie beyond the range of a picture. What is there is clipped away in the end, so it is no
distance, and a move that leads there is none.
"""

import pytest
import torch

from shielded import Shields, Spell
from shielded.guidance import Step
from shielded.methods import SGF, KernelRepulsion, PosteriorShield, SafeDenoiser
from shielded.spaces import Pixels

SIDE = (3, 8, 8)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(shields, radius, **options):
    """The same guidance with and without walls."""
    walled = Spell(shields, radius=radius, space=Pixels(), **options)
    return walled, Spell(shields, radius=radius, **options)


def distances(x, z):
    return torch.cdist(x.flatten(1), z.flatten(1))


@pytest.mark.parametrize("overlap", ["project", "sum"])
@pytest.mark.parametrize("lam", [1.0, 1.6])
def test_far_from_the_walls_nothing_changes(overlap, lam):
    x0 = 0.1 * draw(0, 5, *SIDE)
    shields = Shields.batch() + Shields.images(x0[:3] + 0.01 * draw(1, 3, *SIDE))
    walled, free = both(shields, 1.5, overlap=overlap, overcompensation=lam)
    assert not torch.equal(free.correct(x0), x0)
    assert torch.equal(walled.correct(x0), free.correct(x0))


def test_what_the_clip_takes_away_is_no_distance():
    """The picture is the reference itself: x0 differs from it beyond the range alone."""
    z = draw(9, 1, *SIDE).sign()
    x0 = 1.3 * z
    walled, free = both(Shields.images(z), 3.0)
    assert float(distances(x0, z)) > 3.0
    assert torch.equal(free.correct(x0), x0)
    moved = walled.correct(x0).clamp(-1, 1)
    assert float(distances(moved, z)) >= 3.0 * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_the_picture_of_what_was_moved_is_outside(seed):
    """A third of the numbers are at or beyond a wall, as in pictures on black."""
    x0 = 0.8 * draw(seed, 6, *SIDE)
    z = (x0[:4] + 0.2 * draw(seed + 100, 4, *SIDE)).clamp(-1, 1)
    radius = 1.5 * float(distances(x0[:4].clamp(-1, 1), z).diagonal().max())
    walled, free = both(Shields.images(z), radius)
    picture = walled.correct(x0).clamp(-1, 1)
    before, after = distances(x0.clamp(-1, 1), z), distances(picture, z)
    assert bool((before < radius).any(1)[:4].all())
    assert float(after.min()) >= radius * (1 - 1e-3)
    naive = distances(free.correct(x0).clamp(-1, 1), z)
    assert float(naive.min()) < radius * (1 - 1e-2)  # Eq. 5 and then the clip is not


@pytest.mark.parametrize("overcompensation", [1.0, 1.6])
@pytest.mark.parametrize("references", [1, 3])
def test_few_free_numbers_make_up_for_many_at_a_wall(references, overcompensation):
    """Of five images each has fewer numbers that can go on: from all of them to a tenth.

    Where nine of ten hit the wall, each move in turn would gain but a tenth of what is missing.
    """
    free = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
    near_wall = draw(8, 5, *SIDE).flatten(1).argsort(1).argsort(1) >= free[:, None] * 192
    x0 = 0.97 * near_wall.double().reshape(5, *SIDE)
    z = torch.cat([x0 - 0.1 + 0.01 * draw(k, 5, *SIDE) for k in range(references)])
    radius = 2 * float(distances(x0, z).diagonal().max())
    walled, _ = both(Shields.images(z), radius, overcompensation=overcompensation)
    picture = walled.correct(x0).clamp(-1, 1)
    assert float(distances(picture, z).min()) >= radius * (1 - 1e-3)
    if overcompensation == 1:  # and not much further than need be
        assert float(distances(picture, z).amin(1).max()) <= radius * 1.1


def test_what_stays_beyond_a_wall_is_left_alone():
    """A move outwards has nothing to show there, so it is not made."""
    x0 = 0.8 * draw(3, 2, *SIDE)
    beyond = x0.abs() > 1
    z = (x0 - 0.3 * x0.sign()).clamp(-1, 1)  # each number is pushed outwards
    walled, free = both(Shields.images(z), 8.0)
    moved = walled.correct(x0)
    assert not torch.equal(moved, x0)
    assert torch.equal(moved[beyond], x0[beyond])
    assert not torch.equal(free.correct(x0)[beyond], x0[beyond])


def test_images_that_are_clear_keep_their_bits():
    x0 = 2 * draw(4, 3, *SIDE)
    walled, _ = both(Shields.images(x0[:1].clamp(-1, 1)), 1.0)
    assert torch.equal(walled.correct(x0)[1:], x0[1:])


def test_the_sum_is_taken_once():
    """Eq. 5 as the paper has it, from the picture: only what the walls leave of it."""
    x0 = 0.8 * draw(5, 1, *SIDE)
    x = x0.clamp(-1, 1)
    z = torch.cat([x + 0.05 * draw(6, *SIDE), x + 0.05 * draw(7, *SIDE)]).clamp(-1, 1)
    walled, _ = both(Shields.images(z), 1.2, overlap="sum")
    d = distances(x, z)[0]
    expected = x + ((1.2 / d - 1).reshape(2, 1, 1, 1) * (x - z)).sum(0)
    assert torch.allclose(walled.correct(x0).clamp(-1, 1), expected.clamp(-1, 1), atol=1e-9)


SOFT = [
    lambda z: PosteriorShield(Shields.images(z), radius=18.0, deviation=0.5),
    lambda z: SafeDenoiser(Shields.images(z), bandwidth=9.0, window=(1.0, 0.0)),
    lambda z: SGF(Shields.images(z), window=(1.0, 0.0)),
    lambda z: KernelRepulsion(),
]
EACH = pytest.mark.parametrize("make", SOFT, ids=["posterior", "safe denoiser", "sgf", "kernel"])


@EACH
def test_soft_pushes_are_those_of_the_picture(make):
    """The same shift at x0 and at clip(x0), where there are walls; another where there are none."""
    x0, z = 1.2 * draw(0, 4, *SIDE), 0.8 * draw(1, 5, *SIDE).clamp(-1, 1)
    x_t, method = x0 + draw(2, 4, *SIDE), make(z)

    def delta(x0, box):
        return method.shift(Step(x_t, x0, 0.6, 0.8, (None,) * 4, box=box)).delta

    walled = delta(x0, (-1.0, 1.0))
    assert float(walled.norm()) > 0
    assert torch.equal(walled, delta(x0.clamp(-1, 1), (-1.0, 1.0)))
    assert torch.equal(walled, delta(x0.clamp(-1, 1), None))
    assert not torch.allclose(walled, delta(x0, None))


@EACH
def test_overshoot_alone_is_no_direction(make):
    """Pictures that lie on their references, or on each other, have nowhere to go."""
    z = draw(9, 1, *SIDE).sign()
    x0 = torch.cat([1.3 * z, 1.1 * z])
    step = Step(x0, x0, 0.6, 0.8, (None,) * 2, box=(-1.0, 1.0))
    assert make(z).shift(step) is None
    free = Step(x0, x0, 0.6, 0.8, (None,) * 2)
    assert make(z).shift(free).delta.any()
