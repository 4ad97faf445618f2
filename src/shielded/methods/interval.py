# SPDX-License-Identifier: Apache-2.0
"""Interval guidance (Kynkaanniemi et al. 2024, arXiv 2404.07724)."""

from __future__ import annotations

from typing import Any

from shielded.errors import BadInput
from shielded.methods.inside import Ask, InsideMethod
from shielded.methods.lower import weighted
from shielded.samplers.network import Call

__all__ = ["IntervalGuidance"]


class IntervalGuidance(InsideMethod):
    """Guidance at noise levels in (low, high] alone; outside, the condition without guidance.

    With the paper's D_w = w D(x; sigma, c) + (1 - w) D(x; sigma): the weight is the pipeline's
    own for low < sigma <= high and 1 elsewhere, where the network is asked once and not twice.

    Args:
        low, high: sigma in the paper's frame x_t = x0 + sigma eps, which is sigma / alpha of a
            sampler, and t / (1 - t) of flow matching. The default is the paper's for Stable
            Diffusion XL; the best values differ from model to model.

    Raises:
        BadInput: unless 0 <= low <= high.
        NotApplicable: by `on` and in the block, for pipelines without a second prediction.

    Example:
        >>> IntervalGuidance(0.28, 5.42)
        IntervalGuidance(low=0.28, high=5.42)
    """

    def __init__(self, low: float = 0.28, high: float = 5.42):
        if not 0 <= low <= high:
            raise BadInput(f"the interval is ({low}, {high}]: it must have 0 <= low <= high.")
        self.low, self.high = float(low), float(high)

    def share(self, sigma: float) -> float:
        """1 inside the interval, 0 outside."""
        return 1.0 if self.low < sigma <= self.high else 0.0

    def answer(self, call: Call, ask: Ask, run: Any) -> tuple[Any, float]:
        """Both predictions inside the interval, the told one as both outside."""
        share = self.share(call.place.sigma)
        return weighted(call, ask, run, share), share

    def __repr__(self) -> str:
        return f"IntervalGuidance(low={self.low}, high={self.high})"
