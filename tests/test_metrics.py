# SPDX-License-Identifier: Apache-2.0
"""Metrics on sets whose values are known: closed forms and definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded.errors import BadInput
from shielded.metrics import (
    PRDC,
    Gaussian,
    by_group,
    class_score,
    clip_score,
    closest_cosines,
    copy_rate,
    copy_threshold,
    density_coverage,
    frechet,
    nearest_distances,
    prdc,
    precision_recall,
    share_inside,
    similarity,
    table_1,
    vendi,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=4, max_size=14)


@settings(max_examples=60)
@given(points, points, st.integers(1, 3))
def test_prdc_is_its_definition_on_a_lattice(real, made, k):
    """Closed balls counted in whole numbers: ties and duplicates are everywhere."""

    def square(a, b):
        return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2

    def reaches(of):
        return [
            sorted(square(a, b) for n, b in enumerate(of) if n != m)[k - 1]
            for m, a in enumerate(of)
        ]

    around_real, around_made = reaches(real), reaches(made)
    held = [
        [square(r, m) <= reach for m in made] for r, reach in zip(real, around_real, strict=True)
    ]
    found = prdc(torch.tensor(real).float(), torch.tensor(made).float(), k)
    assert found.precision == pytest.approx(sum(map(any, zip(*held, strict=True))) / len(made))
    assert found.coverage == pytest.approx(sum(map(any, held)) / len(real))
    assert found.density == pytest.approx(sum(map(sum, held)) / (k * len(made)))
    recalled = [
        any(square(r, m) <= s for m, s in zip(made, around_made, strict=True)) for r in real
    ]
    assert found.recall == pytest.approx(sum(recalled) / len(real))


def test_prdc_of_known_sets():
    x = normal(50, 4)
    same = prdc(x, x, k=4)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(5 / 4)  # its own image and its four neighbours
    assert prdc(x, x + 1000) == PRDC(0, 0, 0, 0)
    assert precision_recall(x, x + 0.5) == prdc(x, x + 0.5, 3)[:2]
    assert density_coverage(x, x + 0.5) == prdc(x, x + 0.5, 5)[2:]
    # All images made in one mode of two: as good, half as various.
    two = torch.cat([x, x + 1000])
    assert prdc(two, torch.cat([x, x + 1e-6 * normal(50, 4, seed=1)])).recall == 0.5


def test_sets_without_balls_are_refused():
    with pytest.raises(BadInput, match="smaller k"):
        prdc(normal(5, 2), normal(50, 2), k=5)


def exact_sample(mean, root, n=40):
    """n points whose sample mean and covariance are mean and root' root, to rounding."""
    f = len(mean)
    x = normal(n, f, seed=3)
    q, _ = torch.linalg.qr(x - x.mean(0))
    return q * math.sqrt(n - 1) @ root + mean


def test_frechet_of_gaussians_that_commute():
    a, b = torch.tensor([1.0, 4, 9, 0]).double(), torch.tensor([4.0, 1, 0, 1]).double()
    shift = torch.tensor([1.0, 0, -2, 0.5]).double()
    want = float(shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    turn, _ = torch.linalg.qr(normal(4, 4))
    one = Gaussian(shift @ turn, turn.T @ a.diag() @ turn)
    two = Gaussian(torch.zeros(4).double(), turn.T @ b.diag() @ turn)
    assert frechet(one, two) == pytest.approx(want, rel=1e-12)
    x = exact_sample(shift @ turn, a.sqrt().diag() @ turn)
    y = exact_sample(torch.zeros(4).double(), b.sqrt().diag() @ turn)
    assert frechet(x, y) == pytest.approx(want, rel=1e-10)
    assert frechet(x, two) == pytest.approx(want, rel=1e-10)


def test_frechet_of_gaussians_that_do_not_commute():
    """In the plane tr(M^(1/2)) = sqrt(tr M + 2 sqrt(det M)), M = C1 C2."""
    one, two = (m.T @ m for m in (normal(2, 2, seed=4), normal(2, 2, seed=5)))
    product = one @ two
    root = torch.sqrt(product.trace() + 2 * product.det().sqrt())
    want = float(one.trace() + two.trace() - 2 * root)
    zero = torch.zeros(2).double()
    assert frechet(Gaussian(zero, one), Gaussian(zero, two)) == pytest.approx(want, rel=1e-10)


def test_frechet_is_the_square_of_a_distance():
    sets = [normal(30, 12, seed=n) * (n + 1) + n for n in range(3)]
    a, b, c = (math.sqrt(frechet(sets[n], sets[m])) for n, m in ((0, 1), (1, 2), (0, 2)))
    assert c <= a + b
    assert frechet(sets[1], sets[0]) == pytest.approx(a * a, rel=1e-10)


@pytest.mark.parametrize("n", [10, 400])
def test_frechet_of_a_shift_also_where_the_covariance_has_no_full_rank(n):
    x = normal(n, 60).float() * 3
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet(x, x.double() + 2) == pytest.approx(4 * 60, rel=1e-10)


def test_frechet_of_sets_that_do_not_vary():
    x = torch.ones(5, 3)
    assert frechet(x, x) == 0
    assert frechet(x, 3 * x) == 12


def test_frechet_refuses_what_does_not_compare():
    with pytest.raises(BadInput, match="one network"):
        frechet(normal(9, 3), normal(9, 4))
    with pytest.raises(BadInput, match="two or more"):
        frechet(normal(1, 3), normal(9, 3))


def test_vendi_orders_are_those_of_renyi():
    """Falls with q, from the rank at 0 to one over the largest eigenvalue."""
    x = normal(9, 5)
    scores = [vendi(x, q) for q in (0, 0.5, 1, 2, 10, math.inf)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(5)
    assert vendi(x, 1 + 1e-7) == pytest.approx(scores[2], rel=1e-5)
    with pytest.raises(BadInput, match="order"):
        vendi(x, -1)
    with pytest.raises(BadInput, match="direction"):
        vendi(torch.zeros(3, 2))


def test_groups_count_the_same_whatever_their_size():
    made = torch.cat([torch.eye(4), torch.ones(12, 4)])
    groups = ["a"] * 4 + ["b"] * 12
    assert by_group(vendi, (made, groups)) == pytest.approx((4 + 1) / 2)
    mixed = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert by_group(vendi, (made[mixed], [groups[n] for n in mixed])) == pytest.approx(2.5)
    numbers = torch.tensor([3] * 4 + [7] * 12)
    assert by_group(lambda x: {"n": len(x)}, (made, numbers)) == {"n": 8}


def test_a_group_that_is_not_everywhere_is_refused():
    x = torch.ones(2, 2)
    with pytest.raises(BadInput, match="'b' is not in every set"):
        by_group(prdc, (x, ["a", "b"]), (x, ["a", "a"]))
    with pytest.raises(BadInput, match="one group each"):
        by_group(vendi, (x, ["a"]))


def test_table_1_averages_five_columns_and_takes_one_over_all():
    real, made = normal(40, 3), normal(40, 3, seed=1) * 0.5
    classes = torch.arange(40) % 2
    row = table_1(real, made, classes, classes, k=3)
    parts = [prdc(real[classes == c], made[classes == c], 3) for c in (0, 1)]
    for name in ("precision", "recall", "density", "coverage"):
        assert row[name] == pytest.approx(sum(getattr(p, name) for p in parts) / 2)
    assert row["vendi"] == pytest.approx(sum(vendi(made[classes == c]) for c in (0, 1)) / 2)
    assert row["frechet"] == frechet(real, made)


def test_distances_to_the_nearest():
    line = torch.tensor([[0.0], [1], [5]])
    assert nearest_distances(line).tolist() == [1, 1, 4]
    assert nearest_distances(line, torch.tensor([[2.0], [9]])).tolist() == [2, 1, 3]


def test_the_surface_of_a_shield_is_outside():
    made, references = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.zeros(1, 2)
    assert share_inside(made, references, 5.0) == 0.5
    assert share_inside(made, references, 5.0 + 1e-12) == 1
    assert share_inside(made, references, 0.0) == 0
    two = torch.tensor([[0.0, 0.0], [3.0, 4.5]])
    assert share_inside(made, two, torch.tensor([1.0, 0.5])) == 0
    assert share_inside(made, two, torch.tensor([1.5, 0.5])) == 0.5
    assert share_inside(made, two, torch.tensor([1.5, 0.51])) == 1
    for wrong in (-1.0, torch.ones(3)):
        with pytest.raises(BadInput, match="radius"):
            share_inside(made, two, wrong)


def test_similarity_is_the_mean_cosine_of_pairs():
    x = normal(12, 7)
    unit = x / x.norm(dim=1, keepdim=True)
    apart = ~torch.eye(12, dtype=torch.bool)
    assert similarity(x) == pytest.approx(float((unit @ unit.T)[apart].mean()))
    assert similarity(torch.ones(5, 3)) == pytest.approx(1)
    assert similarity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-1)


def test_copies_are_told_by_their_direction():
    references = torch.eye(6)
    made = torch.cat(
        [3 * references[:2], torch.tensor([[1.0, 1, 1, 1, 1, 1], [0.8, 0.6, 0, 0, 0, 0]])]
    )
    cosine, place = closest_cosines(made, references)
    assert torch.allclose(cosine, torch.tensor([1, 1, 6**-0.5, 0.8]).double())
    assert place[[0, 1, 3]].tolist() == [0, 1, 0]
    assert copy_rate(made, references) == 0.75
    assert copy_rate(made, references, threshold=0.9) == 0.5


def test_the_threshold_of_copies_keeps_its_precision():
    originals = normal(60, 40)
    altered = originals + 1.5 * normal(60, 40, seed=1)
    cut = copy_threshold(altered, originals)
    unit = [x / x.norm(dim=1, keepdim=True) for x in (altered, originals)]
    cosines, own = unit[0] @ unit[1].T, torch.eye(60, dtype=torch.bool)

    def precision(at):
        return float(own[cosines > at].double().mean())

    assert precision(cut) >= 0.9
    assert all(precision(float(c) - 1e-9) < 0.9 for c in cosines[cosines < cut])
    assert 0.3 < float((cosines.diagonal() > cut).double().mean()) < 1
    assert copy_threshold(torch.eye(4), torch.eye(4)) == pytest.approx(0.5)
    with pytest.raises(BadInput, match="other features"):
        copy_threshold(torch.ones(5, 2), torch.ones(5, 2))


def test_scores_of_what_was_asked_for():
    images, texts = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    assert clip_score(5 * images, texts) == pytest.approx(0.5)
    assert clip_score(images, -images) == 0
    chances = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    assert class_score(chances, torch.tensor([0, 0])) == pytest.approx(0.65)
    with pytest.raises(BadInput, match="one class"):
        class_score(chances, torch.tensor([0, 2]))
    with pytest.raises(BadInput, match="one text each"):
        clip_score(images, texts[:3])
