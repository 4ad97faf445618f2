# SPDX-License-Identifier: Apache-2.0
"""Write down which tiles of the archive a model is trained on, as places in the archive.

python tiles.py --data crawl_tiles_32.npz --to ../../src/shielded/models/tiny-sprites
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from batches import held_out
from data import load_tiles


def main() -> None:
    """Write FOLDER/tiles.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--to", required=True, type=Path)
    parser.add_argument("--hold", type=int, default=48, help="as in train.py")
    options = parser.parse_args()
    archive = np.load(options.data)
    place = {str(path): index for index, path in enumerate(archive["path"])}
    kept, held = held_out(load_tiles(options.data), options.hold)
    content = {
        "rgba": hashlib.sha256(archive["rgba"].tobytes()).hexdigest(),
        "trained": [place[tile.path] for tile in kept],
        "held": [place[tile.path] for tile in held],
    }
    (options.to / "tiles.json").write_text(json.dumps(content) + "\n")
    print(f"{len(kept)} trained on, {len(held)} held out, of {len(place)}")


if __name__ == "__main__":
    main()
