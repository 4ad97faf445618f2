# SPDX-License-Identifier: Apache-2.0
"""What to keep away from: the batch itself, earlier images, given images."""

from shielded.shields.field import Field
from shielded.shields.shields import Shields

__all__ = ["Field", "Shields"]
