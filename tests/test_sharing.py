"""Sharing models: folders and the Hub, without a pickle, and refusal of weights that do not fit."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from proxflow import models
from proxflow.errors import CheckpointError, OutputError
from proxflow.models import Model

RESULT = {
    "sampler": "multistep2", "nfe": 20, "seed": 0, "frechet": 3.25, "precision": 0.5, "samples": 500,
    "reference": "10000 test images of mnist", "extractor": "mnist-classifier 953281188c15",
}  # fmt: skip


@pytest.fixture
def model():
    built = models.build((1, 8, 12), network="unet:channels=8,multipliers=1,patch=4", seed=0)
    provenance = {
        "data": "90 images of flowers",
        "steps": 70,
        "training": {"seed": 3, "steps": 70},
        "versions": {"torch": "2"},
    }
    return replace(built, provenance=provenance)


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub, "HfApi", fail)


def test_a_folder_holds_all_of_a_model_and_needs_no_network(model, tmp_path, no_network):
    model.save_pretrained(tmp_path / "m", results=[RESULT])
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = Model.from_pretrained(tmp_path / "m")
    assert (loaded.spec, loaded.shape, loaded.provenance) == (model.spec, model.shape, model.provenance)
    for name, value in model.predictor.state_dict().items():
        assert torch.equal(value, loaded.predictor.state_dict()[name])
    assert Model.from_pretrained("mnist").shape == (1, 28, 28)


def test_the_card_says_what_and_how(model, tmp_path):
    model.save_pretrained(tmp_path, results=[RESULT, {**RESULT, "nfe": 5, "frechet": 4.5, "precision": None}])
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: proxflow\n")
    for said in (
        "gpfn-w2",
        "images of shape 1 × 8 × 12",
        "90 images of flowers",
        "steps: 70",
        "seed: 3",
        "torch: 2",
        "unet:channels=8",
    ):
        assert said in text
    assert "| multistep2 | 20 | 0 | 3.25 | 0.5 |" in text
    assert "| multistep2 | 5 | 0 | 4.5 | – |" in text
    assert "500 images against 10000 test images of mnist, features mnist-classifier 953281188c15" in text
    model.save_pretrained(tmp_path)
    assert "None were measured" in (tmp_path / "README.md").read_text()


def test_from_the_hub_come_only_safe_files(model, tmp_path, monkeypatch):
    asked = []

    def download(repo, **words):
        asked.append((repo, words))
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model.save_pretrained(tmp_path / "cache")
    loaded = Model.from_pretrained("somebody/flowers", revision="v1", local_files_only=True)
    assert loaded.shape == (1, 8, 12)
    assert asked[0][0] == "somebody/flowers"
    assert asked[0][1]["allow_patterns"] == ["config.json", "model.safetensors", "README.md"]
    assert (asked[0][1]["revision"], asked[0][1]["local_files_only"]) == ("v1", True)


def test_a_pickle_is_never_read(model, tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        Model.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        Model.from_pretrained(tmp_path)


def test_the_hub_without_the_model_is_a_typed_error(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no model 'somebody/nothing'"):  # nothing was downloaded before
        Model.from_pretrained("somebody/nothing", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="no model 'a//b'"):
        Model.from_pretrained("a//b")


def test_upload(model, monkeypatch):
    class Api:
        def __init__(self, token=None):
            assert token == "t"  # noqa: S105

        def create_repo(self, repo_id, **words):
            assert words == {"private": True, "exist_ok": True}
            return type("Url", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns):
            if repo_id == "me/refused":
                raise OSError("the Hub says no")
            found = json.loads((Path(folder_path) / "config.json").read_text())
            assert found["data"]["shape"] == [1, 8, 12]
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert model.push_to_hub("flowers", private=True, token="t") == "https://hub/me/flowers"  # noqa: S106
    with pytest.raises(OutputError, match="cannot upload to 'refused': the Hub says no"):
        model.push_to_hub("refused", private=True, token="t")  # noqa: S106


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"channels": 16}}, r"another architecture: 'network.* is \(.*8.*the model's is \(.*16"),
        ({"network": {"blocks": 2}}, "another architecture: it lacks 'network"),
        ({"network": {"multipliers": [1, 2]}}, "another architecture: "),
        # Without taking the memory, or the time, that is claimed:
        ({"network": {"channels": 2**20}}, "another architecture: "),
        ({"network": {"channels": 4096, "multipliers": [64, 64, 64]}}, "another architecture: "),
        ({"network": {"blocks": 10**9}}, "another architecture: the model has many more layers than there are weights"),
        ({"network": {"multipliers": [1] * 10**5}}, "config.json: images of 8 x 12 become one place"),
        ({"network": {"patch": 10**12}}, "config.json: "),
        ({"network": {"channels": 10**30}}, "config.json: "),
        ({"data": {"shape": [10**6, 10**6, 1]}}, "larger than any use"),
        (
            {"flow": {"schedule": {"kind": "linear", "final": 0.0}}},
            r"flow: gpfn: schedule: linear: final must lie in \(0, 1\]",
        ),
        ({"flow": {"sigma1": 0.3}}, "flow: gpfn has no setting 'sigma1'"),
        ({"predictor": {"kind": "banana"}}, "predictor: no predictor is called 'banana'"),
        ({"colour": {}}, "unknown field 'colour'"),
    ],
)
def test_what_does_not_fit_the_weights_or_means_nothing_is_refused(model, tmp_path, change, message):
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for part, settings in change.items():
        content.setdefault(part, {}).update(settings)
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        models.load(tmp_path)
    assert torch.is_grad_enabled()


def test_weights_with_one_more_tensor_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="has 'extra', which the model does not"):
        models.load(tmp_path)
