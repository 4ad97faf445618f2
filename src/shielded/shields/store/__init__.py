# SPDX-License-Identifier: Apache-2.0
"""Protected images on disk: a Lance dataset that changes in whole versions, each file with its sum.

A set is a folder:

    set.json        what all its latents share
    latents.lance/  one row an image: latent, id, radius, source, sha256, added, metadata
    sums/           SHA-256 of every file, written before any reader can see the file
    draft/          the next version while a writer makes it
    screen/         derived data, a cache
    lock            held by the one writer
"""

from shielded.shields.store.protected_set import ProtectedSet, Version
from shielded.shields.store.reader import Entry, Part
from shielded.shields.store.verify import Report, verify

__all__ = ["Entry", "Part", "ProtectedSet", "Report", "Version", "verify"]
