# SPDX-License-Identifier: Apache-2.0
"""Where distance is measured: the latents themselves, or the pixels that the user gets."""

from shielded.spaces.encode import encode
from shielded.spaces.fingerprint import fingerprint, mismatch
from shielded.spaces.latent import Latent
from shielded.spaces.pixels import Pixels
from shielded.spaces.space import Space, space_of

__all__ = ["Latent", "Pixels", "Space", "encode", "fingerprint", "mismatch", "space_of"]
