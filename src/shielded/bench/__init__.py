# SPDX-License-Identifier: Apache-2.0
"""Measurements that anyone can repeat: one file a table, one command each."""
