# SPDX-License-Identifier: Apache-2.0
"""The images of a split, fetched by img2dataset: many links of CC12M lead nowhere any more."""

import json
import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from shielded.errors import BadInput, Lost, MissingExtra

FOLDER, OF = "images", "list.sha256"
SHARD = 1000  # images of a tar; a fetch that was stopped goes on with the first that is missing
THREADS = 64  # of each process


@dataclass(frozen=True, slots=True)
class Fetched:
    """Images that came, of those on the list, as tar archives in a folder."""

    folder: Path
    images: int
    listed: int


def fetcher() -> str:
    """Where the program img2dataset is: on the PATH, or beside this Python.

    Raises MissingExtra if it is not installed.
    """
    places = [os.environ.get("PATH", ""), sysconfig.get_path("scripts")]
    found = shutil.which("img2dataset", path=os.pathsep.join(places))
    if found is None:
        raise MissingExtra(
            "--images needs img2dataset: pip install 'shielded-diffusion[images]', or pipx install "
            "img2dataset."
        )
    return found


def fetch(listed: Path, size: int, program: str) -> Fetched:
    """Fetch the images of `listed` (images.jsonl) into tars beside it, `size` pixels square.

    What the program prints goes to stderr. Images whose servers forbid this use by X-Robots-Tag
    are left out, as img2dataset does by itself. Raises BadInput if the folder holds another
    fetch, Lost if the program fails or no image comes.
    """
    folder, rows = listed.with_name(FOLDER), listed.read_bytes()
    _claim(folder, f"{sha256(rows).hexdigest()} {size}\n")
    done = subprocess.run([program, *arguments(listed, folder, size)], stdout=2, check=False)
    if done.returncode:
        raise Lost(f"img2dataset failed with exit code {done.returncode}: see what it says above.")
    stats = [json.loads(path.read_text()) for path in sorted(folder.glob("*_stats.json"))]
    if not (came := sum(one["successes"] for one in stats)):
        raise Lost(f"img2dataset fetched no image: check the network, then remove {folder}.")
    return Fetched(folder, came, rows.count(b"\n"))


def arguments(listed: Path, folder: Path, size: int) -> list[str]:
    """What img2dataset is told."""
    told = {
        "url_list": listed,
        "input_format": "jsonl",
        "url_col": "url",
        "caption_col": "caption",
        "save_additional_columns": '["split"]',
        "output_format": "webdataset",
        "output_folder": folder,
        "image_size": size,
        "resize_mode": "center_crop",
        "number_sample_per_shard": SHARD,
        "processes_count": min(os.cpu_count() or 1, 16),
        "thread_count": THREADS,
    }
    return [f"--{name}={value}" for name, value in told.items()]


def _claim(folder: Path, mark: str) -> None:
    """Mark a folder as that of this list and size; img2dataset itself would mix two of them."""
    folder.mkdir(exist_ok=True)
    file = folder / OF
    if not file.exists() and not any(folder.iterdir()):
        file.write_text(mark)
    if not file.exists() or file.read_text() != mark:
        raise BadInput(
            f"{folder} holds other images: remove it, or give another --out. The split itself is "
            "complete."
        )
