# SPDX-License-Identifier: Apache-2.0
"""A process that builds a set from a folder until it is killed, and says how far it is.

It imports everything once, then forks a child for each line of orders that it reads.
"""

import json
import os
import signal
import sys

import lance  # noqa: F401 - before the fork, with everything else that takes its time
import torch

from shielded.ingest import build, open_source
from shielded.shields.store import ProtectedSet
from shielded.spaces import encode  # noqa: F401


class Pixel:
    """The least that `encode` takes for a pipeline: pixels of 8 x 8."""

    components = {"unet": object()}  # noqa: RUF012
    default_sample_size = 8


class Fatal(Pixel):
    """The first one kills its process on its way to work, and leaves a mark; later ones work."""

    def __init__(self, mark):
        if not os.path.exists(mark):
            open(mark, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder, source):
    """Build, two pictures a version, and say after each picture how many are in the set."""
    target = ProtectedSet.open(folder)
    heard = lambda share, built: os.write(1, f"{built.added}\n".encode())  # noqa: E731
    build(target, Pixel(), open_source(source), 2, hold=(1, 0.0), tell=heard)
    os.write(1, b"done\n")


def main():
    torch.set_num_threads(1)
    os.write(1, b"ready\n")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(*json.loads(line))
            os._exit(0)
        os.write(1, f"pid {child}\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"gone\n")


if __name__ == "__main__":
    main()
