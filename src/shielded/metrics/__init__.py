# SPDX-License-Identifier: Apache-2.0
"""How different, how faithful: metrics on features that no guided model has seen."""

from shielded.metrics.features import Pixels, ResNet56
from shielded.metrics.manifold import precision_recall
from shielded.metrics.vendi import vendi

__all__ = ["Pixels", "ResNet56", "precision_recall", "vendi"]
