# SPDX-License-Identifier: Apache-2.0
"""What benches are made of: subjects, contenders, what they made, tables, plots."""
