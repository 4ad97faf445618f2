# SPDX-License-Identifier: Apache-2.0
"""Exact search in a protected set: the screen, what it is made of, and its rivals."""
