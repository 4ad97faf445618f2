# SPDX-License-Identifier: Apache-2.0
"""Data sets that the paper made: here the soft-label split of CC12M (Appendix E)."""

from shielded.data.build import Built, build_cc12m
from shielded.data.counts import Settings
from shielded.data.domain import Domain

__all__ = ["Built", "Domain", "Settings", "build_cc12m"]
