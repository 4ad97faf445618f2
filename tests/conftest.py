# SPDX-License-Identifier: Apache-2.0
"""What every test stands on: no network, one thread, caches in a folder of the test run."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers or transformers is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the radii that calibrate remembers out of the user's cache folder."""
    monkeypatch.delenv("SHIELDED_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny pipelines as folders, each made when it is first asked for."""
    from families import FAMILIES

    root = tmp_path_factory.mktemp("pipelines")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            FAMILIES[name]().pipe.save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture
def rgb(saved: Callable[[str], Path]) -> Path:
    """A pipeline that makes pixels."""
    return saved("deepfloyd_if")
