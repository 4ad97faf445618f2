# SPDX-License-Identifier: Apache-2.0
"""Write the moving average of a training run as a diffusers pipeline folder, in float16.

python export.py --run RUN --to ../../src/shielded/models/tiny-fashion
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from data import NAMES
from net import SETUPS, make_scheduler, make_unet
from safetensors import safe_open

from shielded.models.class_to_image import TinyClassToImagePipeline

OTHER_NAMES = {0: ["T-shirt", "top"], 9: ["boot"]}


def pipeline_of(run: Path) -> TinyClassToImagePipeline:
    """The pipeline, float32, of the state that a run saved last."""
    with safe_open(run / "state.safetensors", "pt") as held:
        setup = json.loads(held.metadata()["place"])["setup"]
        average = {
            k.removeprefix("average."): held.get_tensor(k)
            for k in held.keys()
            if k.startswith("average.")
        }
    unet = make_unet(**SETUPS[setup])
    unet.load_state_dict(average)
    labels = {str(k): ", ".join([n, *OTHER_NAMES.get(k, [])]) for k, n in enumerate(NAMES)}
    return TinyClassToImagePipeline(
        unet=unet.eval(),
        scheduler=make_scheduler(),
        id2label=labels,
        patch_size=SETUPS[setup]["patch"],
    )


def main() -> None:
    """Export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--to", required=True, type=Path)
    options = parser.parse_args()
    pipe = pipeline_of(options.run).to(torch.float16)
    pipe.save_pretrained(options.to, safe_serialization=True)
    for file in options.to.rglob("*.safetensors"):
        file.chmod(0o644)  # let all read it
    size = sum(f.stat().st_size for f in options.to.rglob("*.safetensors"))
    print(f"{size / 1e6:.2f} MB of weights in {options.to}")


if __name__ == "__main__":
    main()
