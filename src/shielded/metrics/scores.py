# SPDX-License-Identifier: Apache-2.0
"""Does an image show what was asked for: CLIP score, and its stand-in without a network."""

from __future__ import annotations

import torch
from torch import Tensor

from shielded.errors import BadInput
from shielded.metrics.nearby import directions
from shielded.metrics.pairs import check


def clip_score(images: Tensor, texts: Tensor) -> float:
    """The mean of max(cos, 0) of each image (N, F) and its text (N, F) in CLIP's space.

    From 0 to 1. Hessel et al. (2021) multiply it by 2.5, torchmetrics by 100.
    """
    check(images, texts)
    if images.shape != texts.shape:
        raise BadInput(f"{len(images)} images need one text each, not {len(texts)}.")
    cosines = (directions(images) * directions(texts)).sum(1)
    return float(cosines.clamp(min=0).mean())


def class_score(probabilities: Tensor, asked_for: Tensor) -> float:
    """The mean probability (N, classes) that a classifier gives the class asked for (N,).

    From 0 to 1: where the condition is a class this takes the place of the CLIP score.
    """
    n, classes = probabilities.shape
    places = asked_for.to(probabilities.device, torch.int64)
    if places.shape != (n,) or not n or bool(((places < 0) | (places >= classes)).any()):
        raise BadInput(f"Each of {n} images needs one class from 0 to {classes - 1}.")
    return float(probabilities.to(torch.float64)[torch.arange(n), places].mean())
