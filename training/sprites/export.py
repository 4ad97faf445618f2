# SPDX-License-Identifier: Apache-2.0
"""Write the moving average of a training run as a diffusers pipeline folder, in float16.

python export.py --run RUN --to ../../src/shielded/models/tiny-sprites
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from net import SETUPS, make_scheduler, make_text_encoder, make_tokenizer, make_unet
from safetensors.torch import load_file

from shielded.models.text_to_image import TinyTextToImagePipeline


def pipeline_of(run: Path) -> TinyTextToImagePipeline:
    """The pipeline, float32, of the state that a run saved last."""
    place = json.loads((run / "state.json").read_text())
    flat = load_file(run / "state.safetensors")
    tokenizer = make_tokenizer(place["words"])
    parts = {
        "text": make_text_encoder(len(tokenizer)),
        "unet": make_unet(**SETUPS[place["setup"]]),
    }
    for name, module in parts.items():
        head = f"average.{name}."
        module.load_state_dict(
            {k.removeprefix(head): v for k, v in flat.items() if k.startswith(head)}
        )
    return TinyTextToImagePipeline(
        tokenizer=tokenizer,
        text_encoder=parts["text"].eval(),
        unet=parts["unet"].eval(),
        scheduler=make_scheduler(),
        patch_size=SETUPS[place["setup"]]["patch"],
    )


def settle(folder: Path) -> None:
    """Name the tokenizer so that every version of transformers finds it; let all read the files."""
    for name in ("model_index.json", "tokenizer/tokenizer_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def main() -> None:
    """Export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--to", required=True, type=Path)
    options = parser.parse_args()
    pipe = pipeline_of(options.run).to(torch.float16)
    pipe.save_pretrained(options.to, safe_serialization=True)
    settle(options.to)
    size = sum(f.stat().st_size for f in options.to.rglob("*.safetensors"))
    print(f"{size / 1e6:.2f} MB of weights in {options.to}")


if __name__ == "__main__":
    main()
