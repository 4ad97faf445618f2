# SPDX-License-Identifier: Apache-2.0
"""Where guidance plugs in: diffusers schedulers, and functions that return x0."""
