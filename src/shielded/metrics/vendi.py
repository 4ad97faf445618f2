# SPDX-License-Identifier: Apache-2.0
"""The Vendi score: how many different images a set holds in effect."""

import math

import torch
from torch import Tensor

from shielded.errors import BadInput
from shielded.metrics.nearby import directions


def vendi(features: Tensor, q: float = 1.0) -> float:
    """exp of the order-q entropy of the eigenvalues of K / n, K the cosine similarities.

    `features` (N, F), one row an image; from 1 (all equal in direction) to N (all orthogonal).
    q = 1 is Shannon's entropy (Friedman and Dieng 2023), q = inf the largest eigenvalue alone; a
    small q counts what is rare, a large one what is common (Pasarkar and Dieng 2024).
    """
    if not q >= 0:
        raise BadInput("The order of a Vendi score is a number from 0, or inf.")
    x = directions(features)
    small = x.T @ x if len(x) > x.shape[1] else x @ x.T  # the same eigenvalues, but for zeros
    values = torch.linalg.eigvalsh(small / len(x)).clamp(min=0)
    values = values[values > 1e-12]
    if q == 1:
        return math.exp(float(-(values * values.log()).sum()))
    if math.isinf(q):
        return 1 / float(values.max())
    return math.exp(float((values**q).sum().log()) / (1 - q))
