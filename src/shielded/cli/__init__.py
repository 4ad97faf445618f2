# SPDX-License-Identifier: Apache-2.0
"""The command `shielded`."""

import sys

NEEDED = ("typer", "rich", "jinja2", "matplotlib")


def main() -> None:
    """Run the command; without its packages, say in one sentence how to get them."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in NEEDED):
        print(
            'The command needs a few packages: pip install "shielded-diffusion[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        from shielded.cli.app import app

        app()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
