# SPDX-License-Identifier: Apache-2.0
"""What a search remembers: never more than is true, whatever it had to forget."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded.shields.search.memory import LATELY, Memory


def memory(z, room, monkeypatch, first=None):
    """With room for so many points, over references z (N, D); and what was fetched."""
    for name, count in (("HOT", room), ("SOME", room if first is None else first)):
        size = count * (z[0].nbytes + 4 * LATELY)
        monkeypatch.setattr(f"shielded.shields.search.memory.{name}", size)
    fetched = []

    def fetch(rows):
        fetched.extend(rows.tolist())
        return z[rows]

    return Memory(fetch, len(z), z[0].double(), z.shape[1]), fetched


def distances(x, z):
    return torch.cdist(x, z.double(), compute_mode="donot_use_mm_for_euclid_dist")


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 40, 700]),
    st.sampled_from([(1, 1), (7, 7), (100, 100), (2, 100), (5, 40)]),
    st.sampled_from([torch.float16, torch.float32]),
    st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_bounds_hold_along_walks_that_outgrow_the_memory(seed, d, room, dtype, shift):
    generator = torch.Generator().manual_seed(seed)
    z = (shift + torch.randn(60, d, generator=generator)).to(dtype)
    x = z[:5].double()
    with pytest.MonkeyPatch.context() as patch:
        mine, _ = memory(z, room[1], patch, first=room[0])
        every = torch.arange(60)
        for step in range(40):
            x = x + 0.1 * 0.9**step * torch.randn(5, d, generator=generator, dtype=torch.float64)
            asked = mine.ask(x[: 1 + step % 5], x[: 1 + step % 5])
            true = distances(asked.x, z)
            assert bool((mine.least(asked, every).double() <= true).all())
            row = torch.randperm(60, generator=generator)[: 1 + 3 * step].sort().values
            low, high = mine.measure(asked, row)
            assert bool((low.double() <= true[:, row]).all())
            assert bool((high.double() >= true[:, row]).all())
            assert torch.equal(mine.points(row), z[row])
            assert bool((mine.least(asked, every).double() <= true).all())


def test_more_is_kept_only_where_what_was_let_go_is_asked_for_again(monkeypatch):
    """Points that are new each time need no more room; a circle of points gets what it needs."""
    z = torch.arange(2000.0).reshape(1000, 2)
    mine, fetched = memory(z, 64, monkeypatch, first=8)
    for row in torch.arange(500).split(5):
        assert torch.equal(mine.points(row), z[row])
    assert len(mine._row) == 8
    for _ in range(40):
        for row in torch.arange(500, 540).split(5):
            assert torch.equal(mine.points(row), z[row])
    assert len(mine._row) == 64
    fetched.clear()
    for _ in range(3):
        assert torch.equal(mine.points(torch.arange(500, 540)), z[500:540])
    assert not fetched
    for _ in range(20):
        assert torch.equal(mine.points(torch.arange(1000)), z), "and no more than there may be"
    assert len(mine._row) == 64


def test_what_was_measured_is_not_forgotten_at_once(monkeypatch):
    """From the same points nothing is lost, from others as much as they are apart."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 30, generator=generator)
    x = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    mine, fetched = memory(z, 50, monkeypatch)
    every = torch.arange(50)
    low, _ = mine.measure(mine.ask(x, x), every)
    y = x + 0.01
    mine.ask(y, y)  # another track
    again = mine.least(mine.ask(x, x), every)
    assert torch.allclose(again, low, rtol=1e-5)
    further = mine.least(mine.ask(x + 0.1, x + 0.1), every)
    assert torch.allclose(further, low - 0.1 * 30**0.5, rtol=1e-4)
    assert sorted(fetched) == every.tolist(), "each point once"


def test_the_bounds_are_close(monkeypatch):
    """So that float64 is needed for few."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 3072, generator=generator).half()
    mine, _ = memory(z, 200, monkeypatch)
    x = z[:8].double() + torch.randn(8, 3072, generator=generator)
    low, high = mine.measure(mine.ask(x, x), torch.arange(200))
    assert float((high - low).max()) < 0.01 * float(distances(x, z).median())


def test_what_float32_cannot_hold_is_not_bounded(monkeypatch):
    z = torch.tensor([[1e20, 0.0], [3e38, 0.0], [0.0, 0.0]])
    mine, _ = memory(z, 3, monkeypatch)
    x = torch.tensor([[1e20, 1.0], [1e-30, 0.0]], dtype=torch.float64)
    low, high = mine.measure(mine.ask(x, x), torch.arange(3))
    true = distances(x, z)
    assert bool((low <= true).all())
    assert bool((high >= true).all())


def test_more_points_at_once_than_there_was_room_for(monkeypatch):
    z = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    mine, _ = memory(z, 30, monkeypatch)
    x = torch.randn(LATELY, 6, dtype=torch.float64)
    for _ in range(5):
        asked = mine.ask(x, x)
        low, high = mine.measure(asked, torch.arange(30))
        true = distances(x, z)
        assert bool((low <= true).all())
        assert bool((high >= true).all())
        assert bool((mine.least(asked, torch.arange(30)) <= true).all())
        x = x + 0.1


def test_after_a_point_too_far_for_float32_nothing_is_ruled_out(monkeypatch):
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    kept, _ = memory(z, 6, monkeypatch)
    near, far = z[:1].double(), torch.full((1, 4), 1e200, dtype=torch.float64)
    for x in (near, far):
        asked = kept.ask(x, x)
        kept.measure(asked, torch.tensor([0, 1]))
    least = kept.least(kept.ask(near, near), torch.arange(6))
    assert not bool(least.isnan().any())
    assert bool((least.double() <= distances(near, z)).all())
    lost = kept.least(kept.ask(-far, -far), torch.arange(6))
    assert not bool((lost > 0).any() | lost.isnan().any())


def test_what_may_be_asked_for_next_is_announced_once(monkeypatch):
    """Not what is here, nor what was here; and of too many it is not known which."""
    z, told = torch.arange(2000.0).reshape(1000, 2), []
    mine, _ = memory(z, 4, monkeypatch)
    mine._announce = lambda row: told.extend(row.tolist())
    mine.points(torch.arange(4))
    mine.points(torch.arange(4, 6))  # two had to go
    mine.expect(torch.arange(9))
    assert told == [6, 7, 8]
    mine.expect(torch.arange(10))
    assert told == [6, 7, 8, 9]
    mine.expect(torch.arange(500))
    assert len(told) == 4
    assert torch.equal(mine.points(torch.arange(10)), z[:10])


def test_nothing_is_announced_where_nobody_listens():
    z = torch.arange(20.0).reshape(10, 2)
    mine = Memory(lambda rows: z[rows], 10, z[0].double(), 2)
    mine.expect(torch.arange(10))
    assert torch.equal(mine.points(torch.arange(10)), z)
