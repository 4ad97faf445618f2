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
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.distances import squared_distances

__all__ = ["Centred", "Gram", "escape", "outside_hull", "project", "repel_sum"]

ROUNDS = 64  # how often a move may meet new shields before straight lines are searched instead
MOST = 64  # shields that join a move at once, the deepest: of hundreds these clear almost all
LINES = 64  # directions of that search, besides those away from each reference


@dataclass(frozen=True, slots=True)
class Centred:
    """References about their mean, and what a move needs of them, whoever is moved."""

    points: Tensor  # (M, D), as they were given
    z: Tensor  # (M, D), about the origin
    origin: Tensor  # (D,)
    size: Tensor  # (M,) <z_m, z_m>
    zz: Tensor | None  # (M, M) <z_m, z_n>; of many references only those of a few are worth it

    @classmethod
    def of(cls, points: Tensor) -> Centred:
        """Of references (M, D). Made once, it serves every move: they may be thousands."""
        origin = points.mean(0) if len(points) else points.new_zeros(points.shape[1])
        z = points - origin
        zz = z @ z.T if len(z) <= MOST else None
        size = vector_norm(z, dim=1).square_() if zz is None else zz.diagonal()
        return cls(points, z, origin, size, zz)


@dataclass(frozen=True, slots=True)
class Gram:
    """Inner products of x and z about a common origin, from which all moves follow."""

    x: Tensor  # (B, D), centred
    about: Centred  # the references
    xx: Tensor  # (B,) <x_b, x_b>
    xz: Tensor  # (B, M) <x_b, z_m>

    @classmethod
    def of(cls, x: Tensor, z: Tensor | Centred) -> Gram:
        """One product of images x (B, D) with references; of a few, none where these are x."""
        about = z if isinstance(z, Centred) else Centred.of(z)
        images = about.z if x is about.points else x - about.origin
        xz = about.zz if x is about.points and about.zz is not None else images @ about.z.T
        return cls(images, about, images.square().sum(1), xz)

    def distances(self) -> Tensor:
        """|x_b - z_m|^2 (B, M); what is not well above its own rounding error is 0."""
        norms = self.xx[:, None] + self.about.size
        d2 = norms - 2 * self.xz
        return torch.where(d2 > 1e-13 * norms, d2, 0.0)

    def rows(self, rows: Tensor) -> Gram:
        """The same for some of the images."""
        if len(rows) == len(self.x):
            return self
        return Gram(self.x[rows], self.about, self.xx[rows], self.xz[rows])


def repel_sum(x: Tensor, z: Tensor, r: Tensor, allowed: Tensor) -> Tensor:
    """Eq. 5 and Eq. 8: delta_b = sum_m relu(r_m / |x_b - z_m| - 1) (x_b - z_m), shape (B, D).

    A reference that coincides with x gives no direction and adds nothing.
    """
    d = squared_distances(x, z).sqrt()
    weight = torch.where(allowed & (d > 0), (r / d - 1).clamp(min=0), 0.0)
    return weight.sum(1, keepdim=True) * x - weight @ z


def project(
    x: Tensor, z: Tensor | Centred, r2: Tensor, allowed: Tensor, spare: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Move each image outside every allowed shield: y (B, D), and near (B, M), all that counted.

    `outside_hull` of the shields that x is inside of, the MOST deepest where there are more; those
    that y is still or newly inside of join, and the formula is applied again. What the formula
    cannot clear (as many shields as dimensions) goes to `escape`. An image that is inside no
    shield comes back unchanged. `spare` gives directions (B, D) and is asked only where an image
    lies on its references. z is (M, D), or `Centred`, where it serves more than one move.
    """
    gram = Gram.of(x, z)
    z, d2 = gram.about.points, gram.distances()
    near = allowed & (d2 < r2)
    rows = near.any(1).nonzero()[:, 0]
    if not len(rows):
        return x, near
    y, left = x, _deepest(near, d2, r2)
    for _ in range(ROUNDS):
        out, d2 = outside_hull(gram.rows(rows), r2, left[rows], lambda rows=rows: spare()[rows])
        y = out if len(rows) == len(x) else y.index_copy(0, rows, out)
        entered = allowed[rows] & (d2 < r2 * (1 - 1e-9)) & ~left[rows]
        lost = d2.isnan().any(1)
        for b in rows[lost].tolist():
            y[b] = escape(x[b], z[allowed[b]], r2[allowed[b]])
        near[rows] |= entered
        left[rows] |= _deepest(entered, d2, r2)
        rows = rows[entered.any(1) & ~lost]
        if not len(rows):
            return y, near
    for b in rows.tolist():
        y[b] = escape(x[b], z[allowed[b]], r2[allowed[b]])
    return y, near


def outside_hull(
    gram: Gram, r2: Tensor, near: Tensor, spare: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Move x orthogonally to its near references until it is outside all their shields.

    With A = {m: near[b, m]}, p the projection of x on the affine hull of {z_m: m in A} and
    w the unit vector along x - p,

        y = p + t w,   t^2 = max_{m in A} (r_m^2 - |p - z_m|^2),   |y - z_m|^2 = |p - z_m|^2 + t^2.

    For a single shield this is Eq. 5 with delta = y - x. Where x lies on the hull, w is
    `spare()` (B, D) made orthogonal to it; where no direction is orthogonal to the hull the row
    is NaN. r2 may be negative. Each row needs one near shield at least. The cost is one K x K
    solve a row on the Gram matrix, K = max |A|: nothing of size D is factorised.

    Returns y (B, D) and its squared distances (B, M) to all references.
    """
    x, xz, every = gram.x, gram.xz, gram.about
    z, zz, zsize = every.z, every.zz, every.size
    if zz is None:
        some = near.any(0).nonzero()[:, 0]
        z, zsize, xz, r2, near = z[some], zsize[some], xz[:, some], r2[some], near[:, some]
        zz = z @ z.T
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
    d2 = (pp + zsize - 2 * pz).clamp_(min=0)  # |p - z_m|^2
    t = torch.where(near, r2 - d2, -torch.inf).amax(1, keepdim=True).clamp(min=0).sqrt()
    t = torch.maximum(t, torch.where(flat, 0.0, size))
    y = p.add_(w.mul_(t))
    d2 = y.square().sum(1, keepdim=True) + every.size - 2 * (y @ every.z.T)
    return y.add_(every.origin), d2


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
