# SPDX-License-Identifier: Apache-2.0
"""Tiny random instances of real diffusers pipelines; `families` is the way in."""
