# SPDX-License-Identifier: Apache-2.0
"""The paper in one screen: Eq. 5 / 8 of SPELL (arXiv 2410.06025), and shields that overlap.

    B images, M references, D numbers in one flattened latent
    x (B, D)  expected outputs x0            z (M, D)  references, the centres of the shields
    r (M,)    radii, r2 their squares        allowed (B, M) bool: shield m counts for image b
    near (B, M) bool: and image b has to leave it

All tensors are float64: distances between latents are small against their norms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.crowd import Centred, Crowd, Gram
from shielded.distances import squared_distances

__all__ = ["escape", "outside_ball", "outside_hull", "project", "repel_sum"]

ROUNDS = 64  # how often a move may meet new shields before straight lines are searched instead
MOST = 16  # shields that join a move at once, the deepest: of hundreds these clear almost all
LINES = 64  # directions of that search, besides those away from each reference


def repel_sum(x: Tensor, z: Tensor, r: Tensor, allowed: Tensor) -> Tensor:
    """Eq. 5 and Eq. 8: delta_b = sum_m relu(r_m / |x_b - z_m| - 1) (x_b - z_m), shape (B, D).

    A reference that coincides with x gives no direction and adds nothing.
    """
    d = squared_distances(x, z).sqrt()
    weight = torch.where(allowed & (d > 0), (r / d - 1).clamp(min=0), 0.0)
    return weight.sum(1, keepdim=True) * x - weight @ z


def project(
    x: Tensor, z: Tensor | Crowd, r2: Tensor, allowed: Tensor, spare: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Move each image outside every allowed shield: y (B, D), and near (B, M), all that counted.

    `outside_ball` or `outside_hull` of the shields that x is inside of, the MOST deepest where
    there are more; those that y is still or newly inside of join, and the formula is applied again.
    What the formula cannot clear (as many shields as dimensions) goes to `escape`. An image that
    is inside no shield comes back unchanged. `spare` gives directions (B, D) and is asked only
    where an image lies on its references. z is (M, D), or a `Crowd`, where it serves more than one
    move.
    """
    crowd = z if isinstance(z, Crowd) else Crowd(z)
    d2 = crowd.squares(x, r2, allowed)
    near = allowed & (d2 < r2)
    rows = near.any(1).nonzero()[:, 0]
    if not len(rows):
        return x, near
    y, left = x, _deepest(near, d2, r2)
    for _ in range(ROUNDS):
        every = len(rows) == len(x)
        start, mine = (x, left) if every else (x[rows], left[rows])
        some, few = crowd.centred(mine)
        outside = outside_ball if int(mine.sum(1).max()) == 1 else outside_hull
        out = outside(start, few, r2[some], mine[:, some], lambda rows=rows: spare()[rows])
        y = out if every else y.index_copy(0, rows, out)
        others = allowed[rows] & ~mine
        d2 = crowd.squares(out, r2, others)
        entered = others & (d2 < r2 * (1 - 1e-9))
        lost = out.isnan().any(1)
        for b in rows[lost].tolist():
            y[b] = _escaped(x[b], crowd, r2, allowed[b])
        near[rows] |= entered
        left[rows] |= _deepest(entered, d2, r2)
        rows = rows[entered.any(1) & ~lost]
        if not len(rows):
            return y, near
    for b in rows.tolist():
        y[b] = _escaped(x[b], crowd, r2, allowed[b])
    return y, near


def outside_ball(
    x: Tensor, about: Centred, r2: Tensor, near: Tensor, spare: Callable[[], Tensor]
) -> Tensor:
    """Move x away from its one near reference z to the surface of its shield: Eq. 5.

        y = z + t w,   w = (x - z) / |x - z|,   t^2 = max(r^2, |x - z|^2)

    Where x lies on z, w is the direction of `spare()` (B, D), and NaN if that has none.
    """
    m = near.to(torch.int8).argmax(1)
    x, z = x - about.origin, about.z[m]
    w, length = x - z, about.zz.diagonal()[m, None].sqrt()
    size = vector_norm(w, dim=1, keepdim=True)
    flat = size <= 1e-9 * (vector_norm(x, dim=1, keepdim=True) + length)
    w.div_(size)
    if bool(flat.any()):
        w = torch.where(flat, _orthogonal(spare(), torch.zeros_like), w)
    t = torch.maximum(r2[m, None].clamp(min=0).sqrt(), torch.where(flat, 0.0, size))
    return w.mul_(t).add_(z).add_(about.origin)


def outside_hull(
    x: Tensor, about: Centred, r2: Tensor, near: Tensor, spare: Callable[[], Tensor]
) -> Tensor:
    """Move x orthogonally to its near references until it is outside all their shields.

    With A = {m: near[b, m]}, p the projection of x on the affine hull of {z_m: m in A} and
    w the unit vector along x - p,

        y = p + t w,   t^2 = max_{m in A} (r_m^2 - |p - z_m|^2),   |y - z_m|^2 = |p - z_m|^2 + t^2.

    For a single shield this is `outside_ball`. Where x lies on the hull, w is
    `spare()` (B, D) made orthogonal to it; where no direction is orthogonal to the hull the row
    is NaN. r2 may be negative. Each row needs one near shield at least. The cost is one K x K
    solve a row on the Gram matrix, K = max |A|: nothing of size D is factorised. Returns y (B, D).
    """
    gram = Gram.of(x, about)
    x, xz, z, zz = gram.x, gram.xz, about.z, about.zz
    index, valid = _indices(near)  # (B, K)
    base = index[:, :1]  # z_a, the first near reference of each row
    solve = _projector(zz, index, valid)

    def along_hull(inner: Tensor) -> Tensor:
        """Weights (B, M), summing to 0, of v's projection on span{z_m - z_a}, from <v, z_m>."""
        c = solve((inner.gather(1, index) - inner.gather(1, base)) * valid)
        weights = torch.zeros_like(inner).scatter_add_(1, index, c)
        return weights.scatter_add_(1, base, -c.sum(1, keepdim=True))

    weights = along_hull(xz - zz[base[:, 0]])  # of x - z_a
    weights.scatter_add_(1, base, torch.ones_like(base, dtype=x.dtype))
    p, pz = weights @ z, weights @ zz
    pp = (weights * pz).sum(1, keepdim=True)
    w = x - p
    size = vector_norm(w, dim=1, keepdim=True)
    flat = size <= 1e-9 * (gram.xx.sqrt()[:, None] + pp.clamp(min=0).sqrt())
    w.div_(size)
    if bool(flat.any()):
        w = torch.where(flat, _orthogonal(spare(), lambda v: along_hull(v @ z.T) @ z), w)
    d2 = (pp + zz.diagonal() - 2 * pz).clamp_(min=0)  # |p - z_m|^2
    t = torch.where(near, r2 - d2, -torch.inf).amax(1, keepdim=True).clamp(min=0).sqrt()
    t = torch.maximum(t, torch.where(flat, 0.0, size))
    return p.add_(w.mul_(t)).add_(about.origin)


def escape(x: Tensor, z: Tensor, r2: Tensor, targets: Tensor | None = None) -> Tensor:
    """The nearest point to x (D,) outside all shields z (M, D), along fixed straight lines.

    Each ball blocks one interval of a line, so the first free point of a line is exact. The lines
    leave x away from each reference, along the axes (in small D) and in fixed random directions;
    or they run to `targets` (N, D) and end there, for a box. NaN if all lines are blocked.
    """
    u = _lines(x, z) if targets is None else targets - x  # (N, D)
    reach = torch.inf if targets is None else 1.0
    u = u[(u * u).sum(1) > 0]
    v = x - z
    uu, uv = (u * u).sum(1)[:, None], u @ v.T  # |x + s u - z|^2 = s^2 uu + 2 s uv + vv
    root = uv * uv - uu * ((v * v).sum(1) - r2)
    hit = root > 0
    root = root.clamp(min=0).sqrt()
    low = torch.where(hit, (-uv - root) / uu, torch.inf)
    high = torch.where(hit, (-uv + root) / uu, -torch.inf)
    s = torch.zeros_like(uu[:, 0])
    for _ in range(len(z)):  # each pass leaves at least one more ball behind
        blocked = (low < s[:, None]) & (high > s[:, None] * (1 + 1e-12))
        further = torch.where(blocked, high, 0.0).amax(1)
        if not bool((further > s).any()):
            break
        s = torch.maximum(s, further)
    length = torch.where(s <= reach, s * uu[:, 0].sqrt(), torch.inf)
    if not len(u) or bool(length.isinf().all()):
        return torch.full_like(x, torch.nan)
    best = length.argmin()
    return x + s[best] * u[best]


def _escaped(x: Tensor, crowd: Crowd, r2: Tensor, allowed: Tensor) -> Tensor:
    """`escape` of one image (D,) from the references that are allowed (M,) for it."""
    return escape(x, crowd.points(allowed.nonzero()[:, 0]), r2[allowed])


def fixed_directions(count: int, like: Tensor) -> Tensor:
    """`count` unit vectors (count, D), the same on every machine and in every call."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(count, like.shape[-1], generator=generator, dtype=torch.float64)
    return (u / u.norm(dim=1, keepdim=True)).to(like)


def _lines(x: Tensor, z: Tensor) -> Tensor:
    away = torch.cat([x - z[:LINES], (x - z.mean(0))[None], fixed_directions(LINES, x)])
    if len(x) > LINES:
        return away
    axes = torch.eye(len(x), dtype=x.dtype, device=x.device)
    return torch.cat([away, axes, -axes])


def _orthogonal(v: Tensor, onto: Callable[[Tensor], Tensor]) -> Tensor:
    """v without its part `onto` a subspace, of length 1; NaN where nothing but rounding is left."""
    v = v / vector_norm(v, dim=1, keepdim=True)
    for _ in range(2):  # twice is enough: the second pass removes what rounding left in v
        v = v - onto(v)
        length = vector_norm(v, dim=1, keepdim=True)
        v = torch.where(length > 1e-7, v / length, torch.nan)
    return v


def _deepest(near: Tensor, d2: Tensor, r2: Tensor) -> Tensor:
    """Of the near references (B, M) of each row the MOST that it is deepest inside of."""
    if near.shape[1] <= MOST or int(near.sum(1).max()) <= MOST:
        return near.clone()
    few = torch.where(near, d2 - r2, torch.inf).topk(MOST, dim=1, largest=False).indices
    return near & torch.zeros_like(near).scatter_(1, few, True)


def _indices(near: Tensor) -> tuple[Tensor, Tensor]:
    """The near references of each row as padded indices (B, K), and which of them are real."""
    k = int(near.sum(1).max())
    index = near.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :k]
    return index, near.gather(1, index)


def _projector(zz: Tensor, index: Tensor, valid: Tensor) -> Callable[[Tensor], Tensor]:
    """Solve H c = v, H_ij = <z_i - z_a, z_j - z_a> for each row's own references: v (B, K) to c."""
    a = index[:, :1]
    ia, aa = zz[index, a], zz[a, a]  # (B, K), (B, 1)
    h = zz[index[:, :, None], index[:, None, :]] - ia[:, :, None] - ia[:, None, :] + aa[:, None]
    size = h.diagonal(dim1=1, dim2=2)
    top = size.amax(1, keepdim=True)
    # The base itself, copies of it and padding span nothing: pivot 1, answer 0.
    floor = torch.maximum(1e-12 * top, 1e-14 * zz.diagonal().max().clamp(min=1e-290))
    span = valid & (size > floor)
    top = torch.where(span, size, 0.0).amax(1)[:, None].clamp(min=1e-290)
    h = (h / top[:, :, None]).masked_fill(~(span[:, :, None] & span[:, None, :]), 0.0)
    h = h + torch.diag_embed((~span).to(h.dtype))
    factor, info = torch.linalg.cholesky_ex(h)
    pivots = factor.diagonal(dim1=1, dim2=2).amin(1)
    if bool(((info == 0) & (pivots > 1e-5)).all()):
        return lambda v: torch.cholesky_solve((v / top * span)[:, :, None], factor)[:, :, 0]
    # Affinely dependent references: the pseudo-inverse projects on the same hull.
    values, vectors = torch.linalg.eigh(h)
    inverse = torch.where(values > 1e-10, 1 / values, 0.0)[:, :, None]
    return lambda v: (vectors @ (inverse * (vectors.mT @ (v / top * span)[:, :, None])))[:, :, 0]
