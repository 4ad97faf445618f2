# SPDX-License-Identifier: Apache-2.0
"""A process that changes a protected set until it is killed, and says what it has finished.

It imports everything once, then forks a child for each line of orders that it reads.
"""

import json
import os
import random
import resource
import sys
import warnings
import zlib

import lance.optimize  # noqa: F401  once here, not in every child
import torch

from shielded.errors import ShieldedError
from shielded.shields.store import ProtectedSet

SHAPE = (4, 8, 8)


def latents(ids):
    """What the images of these ids look like, to whoever asks."""
    made = [torch.Generator().manual_seed(zlib.crc32(name.encode())) for name in ids]
    return torch.stack([torch.randn(SHAPE, generator=g) for g in made])


def say(*words):
    os.write(1, (json.dumps(words) + "\n").encode())


def change(path, seed):
    """Add, remove and compact at random, for ever."""
    rng = random.Random(seed)
    a = ProtectedSet.open(path)
    live = {name for batch in a.entries(["id"]) for name in batch["id"]}
    k = 0
    while True:
        what = rng.choices(["add", "remove", "compact"], [5, 3, 2])[0]
        if what == "add":
            ids = [f"{seed}-{k}-{n}" for n in range(rng.randint(1, 30))]
            say("try", "add", ids)
            a.add(latents(ids), ids)
            live |= set(ids)
        elif what == "remove":
            ids = rng.sample(sorted(live), rng.randint(0, len(live) // 2))
            say("try", "remove", ids)
            a.remove(ids)
            live -= set(ids)
        else:
            ids = []
            say("try", "compact", ids)
            a.compact(keep=rng.choice([None, 1, 2]))
        say("done", what, ids)
        k += 1


def create(path, seed):
    """Make one set after another."""
    for k in range(10**6):
        say("try", "create", f"{path}/{seed}-{k}")
        ProtectedSet.create(f"{path}/{seed}-{k}", SHAPE)
        say("done", "create", f"{path}/{seed}-{k}")


def add(path, seed):
    """Add ten images one by one."""
    a = ProtectedSet.open(path)
    for k in range(10):
        a.add(latents([f"{seed}-{k}"]), [f"{seed}-{k}"])


def churn(path, seed):
    """Add, remove and erase what was, ten times."""
    a = ProtectedSet.open(path)
    for k in range(10):
        a.add(latents([f"{seed}-{k}"]), [f"{seed}-{k}"])
        a.remove([f"{seed}-{k}"])
        a.compact(keep=1)


def fill(path, seed):
    """Add more than fits: no file may be larger than a few pages."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    ids = [f"{seed}-{k}" for k in range(200)]
    ProtectedSet.open(path).add(latents(ids), ids)


def main():
    # Its threads start when it is first used, which is in the children.
    warnings.filterwarnings("ignore", "lance is not fork-safe")
    say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            try:
                say("start", os.getpid())
                globals()[order["work"]](order["path"], order["seed"])
                say("end", os.getpid(), None)
            except ShieldedError as error:
                say("end", os.getpid(), f"{type(error).__name__}: {error}")
            os._exit(0)
        if not order.get("beside"):
            os.waitpid(child, 0)
            say("gone", child)


if __name__ == "__main__":
    main()
