# SPDX-License-Identifier: Apache-2.0
"""The metrics against the code of others on the same features, to 1e-5."""

import importlib
import importlib.util
import sys
import types
from unittest import mock

import numpy as np
import pytest
import torch

from shielded.metrics import DINOv2, Gaussian, Inception, frechet, prdc, precision_recall, vendi


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def skewed(n, seed):
    """Features as networks give them: not negative, of uneven scale, correlated."""
    mix = normal(40, 24, seed=9)
    return torch.relu(normal(n, 40, seed=seed) @ mix + 1) * torch.logspace(-2, 1, 24)


@pytest.fixture
def fidelity(monkeypatch):
    """Imports modules of torch-fidelity, also where torchvision, which its package needs, is not.

    The package is then an empty one with the same folder, and its helpers for data sets, which
    alone use torchvision here, are left out.
    """
    found = importlib.util.find_spec("torch_fidelity")
    if found is None:
        pytest.skip("torch-fidelity is not installed")
    if importlib.util.find_spec("torchvision") is None:
        bare = types.ModuleType("torch_fidelity")
        bare.__path__ = list(found.submodule_search_locations or ())
        monkeypatch.setitem(sys.modules, "torch_fidelity", bare)
        monkeypatch.setitem(sys.modules, "torch_fidelity.utils", mock.MagicMock())
    yield lambda name: importlib.import_module(f"torch_fidelity.{name}")
    for name in [n for n in sys.modules if n.startswith("torch_fidelity.")]:
        del sys.modules[name]  # they belong to the empty package


@pytest.mark.parametrize("k", [3, 5])
def test_prdc_agrees_with_its_authors(k, capsys):
    theirs = pytest.importorskip("prdc").compute_prdc
    for seed, scale in ((0, 1.0), (2, 0.6), (4, 1.4)):
        real, made = skewed(260, seed), skewed(190, seed + 1) * scale
        want = theirs(real.double().numpy(), made.double().numpy(), nearest_k=k)
        assert prdc(real, made, k)._asdict() == pytest.approx(want, abs=1e-5)
        assert 0 < want["recall"] < 1
    capsys.readouterr()  # it prints


def test_precision_and_recall_agree_with_torch_fidelity(fidelity):
    theirs = fidelity("metric_prc").calculate_precision_recall_full
    real, made = skewed(260, 0), skewed(190, 1) * 0.7
    assert precision_recall(real, made) == pytest.approx(theirs(made, real, 3), abs=1e-5)


@pytest.mark.parametrize("n", [15, 400])
def test_frechet_agrees_with_torch_fidelity(fidelity, n):
    fid = fidelity("metric_fid")
    one, two = skewed(n, 0).double(), skewed(n, 1).double() * 1.2
    statistics = [fid.fid_features_to_statistics(x) for x in (one, two)]
    with mock.patch.object(fid, "vprint"):
        want = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    assert frechet(one, two) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("n", [15, 400])
def test_frechet_agrees_with_the_square_root_of_scipy(n):
    linalg = pytest.importorskip("scipy.linalg")
    one, two = Gaussian.of(skewed(n, 0)), Gaussian.of(skewed(n, 1) * 1.2)
    assert np.allclose(one.covariance, np.cov(skewed(n, 0).double().numpy(), rowvar=False))
    root = linalg.sqrtm((one.covariance @ two.covariance).numpy()).real
    apart = (one.mean - two.mean).square().sum()
    want = float(apart + one.covariance.trace() + two.covariance.trace()) - 2 * np.trace(root)
    assert frechet(one, two) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("q", [0.5, 1, 2])
def test_vendi_agrees_with_its_authors(q):
    theirs = pytest.importorskip("vendi_score.vendi")
    x = skewed(60, 0)
    unit = torch.nn.functional.normalize(x, dim=1).double().numpy()
    assert vendi(x, q) == pytest.approx(theirs.score_K(unit @ unit.T, q=q), rel=1e-5)


def test_inception_is_that_of_torch_fidelity(fidelity, tmp_path, monkeypatch):
    """With random weights: what is checked is the way in and out, not the published weights."""
    from safetensors.torch import save_file

    module = fidelity("feature_extractor_inceptionv3")
    kind = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        theirs = kind("inception-v3-compat", ["2048"], verbose=False)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = Inception(tmp_path / "weights.safetensors")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features = ours(pixels / 127.5 - 1)
    assert features.shape == (2, 2048)
    assert torch.equal(features, theirs(pixels)[0])


def test_dinov2_resizes_as_pil_does(tmp_path):
    """FD-DINOv2 was defined on images resized by PIL, which rounds to 8 bits and we do not."""
    from PIL import Image
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14
    )
    net = Dinov2Model(config).eval()
    net.save_pretrained(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (2, 48, 300, 3), dtype=np.uint8)
    noise[1] //= 8  # so that the two differ in more than their noise
    shown = [Image.fromarray(n).resize((224, 224), Image.Resampling.BICUBIC) for n in noise]
    values = torch.from_numpy(np.stack([np.asarray(s) for s in shown])).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    values = (values - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        want = net(pixel_values=values).pooler_output
    images = torch.from_numpy(noise).permute(0, 3, 1, 2) / 127.5 - 1
    found = DINOv2(tmp_path)(images)
    assert found.shape == (2, 16)
    assert torch.allclose(found, want, atol=0.02)
    assert float((found - want.flip(0)).abs().max()) > 0.1
