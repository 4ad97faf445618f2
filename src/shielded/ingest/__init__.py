# SPDX-License-Identifier: Apache-2.0
"""Pictures as a stream, from folders, lists, archives, tables and latents, into a protected set."""

from shielded.ingest.build import Built, build
from shielded.ingest.picture import LIMIT_PIXELS, Aside, Picture, Skipped, decode
from shielded.ingest.source import Source, open_source

__all__ = [
    "LIMIT_PIXELS",
    "Aside",
    "Built",
    "Picture",
    "Skipped",
    "Source",
    "build",
    "decode",
    "open_source",
]
