# SPDX-License-Identifier: Apache-2.0
"""Landing: the returned images themselves are checked, and moved out where they are inside.

Samplers may not return their last x0, and rounding (to bf16, or to 8-bit pixels) moves what they
return. So the last word is spoken here, on what the user gets: image by image, so that those
already landed shield the next.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from shielded.distances import squared_distances
from shielded.pull import pulled_out
from shielded.repel import escape, fixed_directions, project
from shielded.shields import Field, Shields
from shielded.spaces.semantic import Semantic
from shielded.spaces.space import Space

__all__ = ["TOLERANCE", "Landing", "Nearest", "land"]

PASSES = 64  # of a ray from wall to wall: each meets more of them, and mostly few do
TOLERANCE = 1e-5  # relative: an image at (1 - TOLERANCE) r counts as clear
# How far beyond r the move aims, until what rounding leaves of it is clear.
MARGINS = (1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.16, 0.32)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The reference with the smallest distance / radius of one image."""

    source: str
    reference: Hashable
    distance: float
    radius: float
    clear: bool


@dataclass(frozen=True, slots=True)
class Landing:
    """Landed sample (B, ...), the images it stands for (float64), how far each moved, nearest."""

    sample: Tensor
    measured: Tensor
    length: Tensor  # (B,) of the move between measured images; 0 where the sample was left alone
    nearest: list[Nearest]

    @property
    def moved(self) -> Tensor:
        """(B,) bool: whose sample was replaced."""
        return self.length > 0


def land(
    sample: Tensor,
    shields: Shields,
    groups: Sequence[Hashable],
    radius: float | None,
    space: Space,
    spare: Callable[[], Tensor],
    move: bool = True,
) -> Landing:
    """Check the returned `sample` (B, ...) against all shields, and move out what is inside.

    Images that are clear keep their bits. One that no attempt clears keeps the best place found,
    and its `Nearest.clear` is False. With `move=False` it is only measured.
    """
    at = space.measure(sample)
    shape = at.shape
    shields.fit(tuple(shape[1:]))
    at = at.flatten(1).clone()
    length = torch.zeros(len(at), dtype=torch.float64)
    field = shields.field(at, groups, radius)
    inside = _inside(at, field) & field.allowed & (field.r > 0)
    if move and bool(inside.any()):
        sample, members = sample.clone(), field.members
        for b in range(len(at)):
            if not bool((inside[b] & (members < b)).any()):
                continue
            landed = _landed(b, sample, at, shields, groups, radius, space, spare)
            if landed is None:
                continue
            sample[b : b + 1] = landed
            before, at[b] = at[b].clone(), space.measure(landed).flatten()
            length[b] = (at[b] - before).norm()
            own = members == b  # those that come after it keep away from where it is now
            limit = (field.r[own] * (1 - TOLERANCE)).square()
            close = squared_distances(at, at[b : b + 1]) < limit
            inside[:, own] = close & field.allowed[:, own]
    field = shields.closest(at, groups, radius)
    return Landing(sample, at.reshape(shape), length, _nearest(at, field))


def _landed(
    b: int,
    sample: Tensor,
    at: Tensor,
    shields: Shields,
    groups: Sequence[Hashable],
    radius: float | None,
    space: Space,
    spare: Callable[[], Tensor],
) -> Tensor | None:
    """Image b (1, ...) outside all shields, those of later images left to them; None: stay."""
    field = shields.field(at, groups, radius)
    own = field.allowed[b] & (field.r > 0) & (field.members < b)
    if not bool((_inside(at[b : b + 1], field)[0] & own).any()):
        return None
    z, r = field.z[own], field.r[own]
    while True:  # until the move has entered no shield that was left out
        landed = _move_out(at[b], z, r, sample[b : b + 1], space, lambda: spare()[b : b + 1])
        if landed is None or field.whole:
            return landed
        arrived = space.measure(landed).flatten(1)
        new_z, new_r, _ = field.entered(arrived, groups[b : b + 1])
        cleared = bool((squared_distances(arrived, z) >= (r * (1 - 1e-9)) ** 2).all())
        if not cleared or not len(new_r):
            return landed
        z, r = torch.cat([z, new_z]), torch.cat([r, new_r])


def _inside(at: Tensor, field: Field) -> Tensor:
    limit = field.r * (1 - TOLERANCE)
    return squared_distances(at, field.z) < limit * limit


def _nearest(at: Tensor, field: Field) -> list[Nearest]:
    """For each image the reference with the smallest distance / radius."""
    if not len(field.z):
        return [Nearest("none", None, inf, 0.0, True)] * len(at)
    d = squared_distances(at, field.z).sqrt()
    # Radius 0 shields nothing: such references come last, the nearest of them first.
    share = torch.where(field.r > 0, d / field.r, 1e300 * (1 + d / (1 + d)))
    best = torch.where(field.allowed, share, inf)
    value, index = best.min(1)
    found = []
    for b, m in enumerate(index.tolist()):
        if not bool(field.allowed[b, m]):
            found.append(Nearest("none", None, inf, 0.0, True))
            continue
        clear = float(value[b]) >= 1 - TOLERANCE
        found.append(Nearest(*field.label(m), float(d[b, m]), float(field.r[m]), clear))
    return found


def _move_out(
    x: Tensor, z: Tensor, r: Tensor, like: Tensor, space: Space, spare: Callable[[], Tensor]
) -> Tensor | None:
    """A sample (1, ...) whose image is outside all shields, or the best of all attempts.

    The move is made in float64 and then returned in the sample's own precision, so it aims a
    little further until what arrives is clear.
    """
    if isinstance(space, Semantic):
        return pulled_out(space, like, z, r)
    best, best_share = None, float((squared_distances(x[None], z)[0].sqrt() / r).min())
    # Rounding to 8 bits moves an image by far more than the first margins: do not try those.
    for margin in MARGINS if space.box is None else MARGINS[3:]:
        y = _exit(x, z, (r * (1 + margin)) ** 2, space.box, spare)
        image = y.to(like.dtype).reshape(like.shape)
        arrived = space.measure(image).flatten(1)
        share = float((squared_distances(arrived, z)[0].sqrt() / r).min())
        if share > best_share:
            best, best_share = image, share
        if share >= 1:
            break
    return best


def _exit(
    x: Tensor,
    z: Tensor,
    r2: Tensor,
    box: tuple[float, float] | None,
    spare: Callable[[], Tensor],
) -> Tensor:
    """A point outside all shields z (M, D) and inside the box, near x (D,).

    A box may have no such point: then its corner that is deepest inside none of them.
    """
    if box is None:
        return project(x[None], z, r2, _everyone(z), spare)[0][0]
    y = start = x.clamp(*box)
    near = torch.zeros_like(r2, dtype=torch.bool)
    while True:  # of many shields mostly one or two count: the others only once they are entered
        entered = (squared_distances(y[None], z)[0] < r2 * (1 - 1e-9)) & ~near
        if not bool(entered.any()):
            return y
        near |= entered
        found = _around(start, z[near], r2[near], box, spare)
        if found is None:
            return _corner(start, z, r2, box)
        y = found


def _around(
    x: Tensor, z: Tensor, r2: Tensor, box: tuple[float, float], spare: Callable[[], Tensor]
) -> Tensor | None:
    """A point of the box outside the shields z (M, D), near x (D,); None: not found.

    A coordinate that leaves the box stays on its wall, and the others make up for it: the wall
    cuts each ball to a smaller one, of squared radius r^2 - |what is fixed|^2.
    """
    y = _ray(x, z[0], float(r2[0]), box) if len(z) == 1 else None
    if y is not None:
        return y
    y, free = x.clone(), torch.arange(len(x), device=x.device)
    part, centres, left = x, z, r2
    while len(free):
        out, _ = project(
            part[None], centres, left, _everyone(z), lambda free=free: spare()[:, free]
        )
        part = out[0]
        if not bool(part.isfinite().all()):
            return None
        y[free] = held = part.clamp(*box)
        over = held != part
        if not bool(over.any()):
            return y
        wall, rest = over.nonzero()[:, 0], (~over).nonzero()[:, 0]
        left = left - (held[wall] - centres[:, wall]).square().sum(1)
        free, centres = free[rest], centres[:, rest]
        part = x[free]
    return None


def _ray(x: Tensor, z: Tensor, r2: float, box: tuple[float, float]) -> Tensor | None:
    """The same for one shield z (D,) and in closed form; None where x - z is no way out.

    y = clamp(z + t (x - z)) with |y - z| = r: what Lagrange asks of the nearest point. With the
    walls W that it meets, t^2 = (r^2 - |y - z|^2 in W) / (|x - z|^2 elsewhere).
    """
    d = x - z
    free, left = d.square(), r2
    for _ in range(PASSES):
        t2 = left / max(float(free.sum()), 1e-300)
        if not 0 <= t2 < 1e300:
            return None
        y = torch.add(z, d, alpha=t2**0.5)
        held = y.clamp(*box)
        gap = (held - z).square_()
        if float(gap.sum()) >= r2 * (1 - 1e-9):
            return held
        over = held != y
        free, left = free.masked_fill(over, 0.0), r2 - float(gap.masked_fill(~over, 0.0).sum())
    return None


def _corner(x: Tensor, z: Tensor, r2: Tensor, box: tuple[float, float]) -> Tensor:
    """A point outside all shields on a straight line to a corner, or the corner furthest out."""
    low, high = box
    # Straight lines to corners stay in the box: first the corners far from the references.
    corners = torch.cat([-z, -z.mean(0)[None], fixed_directions(64, x)])
    corners = torch.where(corners >= 0, high, low).to(x)
    y = escape(x, z, r2, corners)
    if bool(y.isfinite().all()):
        return y
    return corners[(squared_distances(corners, z) / r2).amin(1).argmax()]


def _everyone(z: Tensor) -> Tensor:
    return torch.ones((1, len(z)), dtype=torch.bool, device=z.device)
