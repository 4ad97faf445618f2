# SPDX-License-Identifier: Apache-2.0
"""Contact sheet, trace plot, page and run.json: what a person sees of a run."""
