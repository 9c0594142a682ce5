"""Latents: encoded once, trained on as other data, decoded by the autoencoder that made them and by no other."""

import json
import shutil
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_stored import encoded, flip_bytes
from torch import nn

import proxflow
from proxflow import names
from proxflow.cli import main
from proxflow.data import sources
from proxflow.data.autoencoders import KL, Autoencoder, Codec
from proxflow.data.images import to_bytes, to_range
from proxflow.data.kinds import kind_of_source
from proxflow.data.kinds.latents import Latents
from proxflow.data.prepared import prepare
from proxflow.errors import ArgumentError, DataError, OutputError
from proxflow.examples import LazyExamples
from proxflow.testing import check_kind

NETWORK = ["--network", "dit:width=16,depth=1,heads=2,patch=4"]


class Pooling(nn.Module):
    """An encoder of two channels, a quarter as high and wide, and a decoder, both plain."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def encode(self, pictures):
        return self.scale * nn.functional.avg_pool2d(pictures, 4)[:, :2]

    def decode(self, latents):
        return nn.functional.interpolate(latents[:, [0, 1, 0]] / self.scale, scale_factor=4.0)


@dataclass(frozen=True)
class PoolingSource(Autoencoder):
    """As a package would add it by an entry point."""

    scale: float = 1.0

    def load(self):
        return Pooling(self.scale)


def run(capsys, *words):
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    assert said.err.count("\n") == (1 if status else 0)
    return status, said.out, said.err


@pytest.fixture
def folder(tmp_path):
    """Seven pictures of 32 x 32 in two classes."""
    for k in range(7):
        place = tmp_path / "pictures" / ("cat", "dog")[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k:02d}.png").write_bytes(encoded(k, (32, 32)))
    return tmp_path / "pictures"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("proxflow.data.prepared.LATENTS_PART", 3)


def pictures_of(folder):
    return sources.pictures_of(str(folder), 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_latents_are_those_of_the_encoder_and_standardise(folder, tmp_path, small_parts, workers):
    pictures, encoder = pictures_of(folder), Pooling(3.0)
    manifest = prepare(pictures, tmp_path / "latents", workers, encoder=encoder, word="kl:path=there")
    assert manifest["parts"] == [3, 3, 1]
    bytes_of = torch.stack([pictures.picture(k) for k in range(7)])
    wanted = encoder.encode(to_range(bytes_of)).detach().half()
    assert kind_of_source(str(tmp_path / "latents")) is Latents
    held, lazy = (Latents.read(str(tmp_path / "latents"), held_out=0.0, workers=w) for w in (None, 0))
    assert isinstance(lazy.train, LazyExamples)
    for found in (held, lazy):
        assert torch.equal(found.train.x, wanted)
        assert found.train.x.dtype == torch.float16
        assert found.train.condition.tolist() == pictures.labels.tolist()
    kind = held.kind
    assert (kind.shape, kind.picture, kind.classes, kind.found) == (
        (2, 8, 8),
        (3, 32, 32),
        ("cat", "dog"),
        "kl:path=there",
    )
    channels = wanted.double().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(kind.mean, channels.mean(1), rtol=1e-12)
    np.testing.assert_allclose(kind.std, channels.std(1, correction=0), rtol=1e-12)
    encoded_latents = kind.encode(held.train.x)
    assert encoded_latents.mean((0, 2, 3)).abs().max() < 1e-6
    torch.testing.assert_close(kind.decode(encoded_latents), wanted, rtol=0, atol=1e-6)
    assert kind.preview(held.train.x).shape[2] == 1
    assert torch.equal(kind.codec(encoder).decode(wanted), to_bytes(encoder.decode(wanted.float()).detach()))


def test_stopped_it_goes_on_bit_for_bit_and_other_weights_are_refused(folder, tmp_path, small_parts, monkeypatch):
    (folder / "cat" / "02.png").write_bytes(encoded(2, (32, 32))[:60])
    pictures, calls, real = pictures_of(folder), [], Codec.encode
    whole = prepare(pictures, tmp_path / "whole", 0, encoder=Pooling())

    def encode(self, batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(Codec, "encode", encode)
    out = tmp_path / "latents"
    with pytest.raises(KeyboardInterrupt):
        prepare(pictures, out, 0, encoder=Pooling())
    with pytest.raises(DataError, match="is not finished; give the same proxflow prepare command again"):
        Latents.read(str(out))
    with pytest.raises(
        OutputError, match=r"cache of other pictures: its encoder is \w+, not \w+; choose another --out"
    ):
        prepare(pictures, out, 0, encoder=Pooling(2.0))
    with pytest.raises(OutputError, match="cache of other pictures: its form is proxflow latents 1, not"):
        prepare(pictures, out, 0)
    del calls[3:]
    assert prepare(pictures, out, 0, encoder=Pooling()) == whole
    assert calls[3:] == [1, 3, 1]  # a picture to see the shape, and the two parts that were missing
    assert whole["number"] == 6
    assert "02.png: cannot be read" in whole["unread"][0]
    for part in out.glob("part-*.bin"):
        assert part.read_bytes() == (tmp_path / "whole" / part.name).read_bytes()
    (out / "part-00001.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"part-00001\.bin: has 0 bytes; expected 768: give the same proxflow"):
        Latents.read(str(out))
    assert prepare(pictures, out, 0, encoder=Pooling()) == whole
    flip_bytes(out / "part-00000.bin")
    with pytest.raises(DataError, match=r"part-00000\.bin: is damaged"):
        Latents.read(str(out))


class Flat(Pooling):
    def encode(self, pictures):
        return super().encode(pictures).flatten(1)


class Large(Pooling):
    def encode(self, pictures):
        return 1e6 * super().encode(pictures).sign()


@pytest.mark.parametrize(
    ("encoder", "size", "error", "message"),
    [
        (nn.Linear(2, 2), 32, ArgumentError, "a torch.nn.Module with encode and decode, got Linear without encode"),
        (
            Flat(),
            32,
            DataError,
            r"the encoder makes \(1, 128\) of one picture; expected \(1, channels, height, width\)",
        ),
        (Pooling(), 30, DataError, r"gives back \(3, 28, 28\) for pictures of shape \(3, 30, 30\): .* as 32"),
        (Large(), 32, DataError, r"latents of \(2, 8, 8\), or not finite in float16, of pictures 0 to 6"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(folder, tmp_path, encoder, size, error, message):
    with pytest.raises(error, match=message) as refused:
        prepare(sources.pictures_of(str(folder), size), tmp_path / "latents", 0, encoder=encoder)
    assert "\n" not in str(refused.value)


def test_it_is_a_kind_as_others_are(folder, tmp_path):
    prepare(pictures_of(folder), tmp_path / "latents", 0, encoder=Pooling())
    check_kind(Latents, str(tmp_path / "latents"), ".npz")


def test_kinds_of_latents_refuse_what_cannot_be():
    good = {"shape": (2, 4, 4), "mean": (0.0, 0.0), "std": (1.0, 2.0), "picture": (3, 8, 8), "encoder": "abc"}
    assert Latents(**good).log_scale == pytest.approx(16 * np.log(2))
    for change, message in (
        ({"shape": (2, 4)}, "each number ≥ 1, got"),
        ({"mean": (0.0,)}, "as many means and standard deviations, got 1 and 2"),
        ({"std": (1.0, 0.0)}, "finite and > 0"),
        ({"classes": ("a", "a")}, "must differ"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Latents(**{**good, **change})
    with pytest.raises(ArgumentError, match=r"these latents have the shape \(2, 4, 5\)"):
        Latents(**good).encode(torch.zeros(1, 2, 4, 5))


def test_autoencoders_of_others_are_found_by_their_names(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(names.BUILT_IN["autoencoders"], "pooling", names.Name("test_latents:PoolingSource", "a test"))
    for k, word in enumerate(("pooling:scale=2", "pooling")):
        out = tmp_path / f"latents-{k}"
        words = ("prepare", folder, "--size", 32, "--encoder", word, "--out", out, "--workers", 0, "--device", "cpu")
        assert run(capsys, *words)[0] == 0
        assert json.loads((out / "manifest.json").read_text())["found"] == word.replace("=2", "=2.0")
    train = ("train", "--steps", 2, "--batch-size", 4, "--grid", 0, "--device", "cpu", "--workers", 0)
    model = tmp_path / "model"
    assert run(capsys, *train, "--data", tmp_path / "latents-0", "--out", model, *NETWORK)[0] == 0
    status, _, err = run(capsys, *train, "--data", tmp_path / "latents-1", "--out", tmp_path / "x", "--init", model)
    assert (status, "the latents of another autoencoder" in err) == (2, True)
    sample = ("sample", model, "--steps", 1, "--device", "cpu")
    assert run(capsys, *sample, "--n", 9, "--out", tmp_path / "nine.npz")[0] == 0
    assert run(capsys, *sample, "--n", 3, "--out", tmp_path / "three.npz")[0] == 0
    nine, three = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("nine", "three"))
    assert nine.shape == (9, 32, 32, 3)
    assert (nine[:3] == three).all()
    status, _, err = run(capsys, *sample, "--encoder", "pooling", "--out", tmp_path / "y.npz")
    assert (status, "has other weights" in err) == (2, True)
    status, _, err = run(capsys, "sample", "--encoder", "pooling", "--out", tmp_path / "y.npz")
    assert (status, "--encoder is for models of latents" in err) == (2, True)
    status, _, err = run(capsys, "restore", folder, "--model", model, "--task", "deblur", "--out", tmp_path / "z")
    assert (status, "restore is of pictures" in err) == (2, True)


# An autoencoder of diffusers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder of an AutoencoderKL of random weights, which halves the sides."""
    library = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("tiny")
    library.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=32, mid_block_add_attention=False,
    ).save_pretrained(place)  # fmt: skip
    return place


def test_from_pictures_to_samples_by_the_commands(tiny, folder, tmp_path, capsys, monkeypatch):
    from diffusers import AutoencoderKL

    monkeypatch.setattr("proxflow.data.prepared.LATENTS_PART", 4)
    out, model = tmp_path / "latents", tmp_path / "model"
    command = ("prepare", folder, "--size", 32, "--encoder", tiny, "--out", out, "--workers", 0, "--device", "cpu")
    status, said, _ = run(capsys, *command)
    assert (status, "7 latents of 4 x 16 x 16, 2 classes, 0 could not be read" in said) == (0, True)
    theirs = AutoencoderKL.from_pretrained(tiny, local_files_only=True, low_cpu_mem_usage=False).eval()
    pictures = torch.stack([pictures_of(folder).picture(k) for k in range(7)])
    with torch.no_grad():  # in the parts that they were encoded in
        wanted = torch.cat([theirs.encode(to_range(part)).latent_dist.mean for part in torch.split(pictures, 4)])
    assert torch.equal(Latents.read(str(out), held_out=0.0).train.x, wanted.half())
    train = (
        "train",
        "--data",
        out,
        "--out",
        model,
        "--conditional",
        "--steps",
        2,
        "--batch-size",
        4,
        "--device",
        "cpu",
    )
    assert run(capsys, *train, *NETWORK, "--workers", 0)[::2] == (0, "")
    status, said, _ = run(capsys, *train[:3], "--out", tmp_path / "none", "--dry-run", "--conditional", *NETWORK)
    assert (status, f"{128 * 2 * 4 * 16 * 16 / 1e3:.3g} kB of data a step" in said) == (0, True)
    assert len(list((model / "samples").glob("*.png"))) == 1  # drawn without the autoencoder
    sample = ("sample", model, "--n", 3, "--steps", 2, "--device", "cpu")
    status, said, _ = run(capsys, *sample, "--encoder", "none", "--out", tmp_path / "raw.npz")
    assert "3 latents, 2 network evaluations each" in said
    raw = torch.from_numpy(np.load(tmp_path / "raw.npz")["latents"])
    assert torch.equal(raw, proxflow.load(model).sample(3, nfe=2))
    status, said, _ = run(capsys, *sample, "--out", tmp_path / "x.npz")
    assert "3 images, 2 network evaluations each" in said
    with torch.no_grad():
        filled = torch.cat([raw.float(), raw[-1:].float().expand(5, -1, -1, -1)])  # as it decodes, eight at a time
        decoded = to_bytes(theirs.decode(filled).sample)[:3]
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "x.npz")["images"]).permute(0, 3, 1, 2), decoded)
    assert run(capsys, *sample, "--class", "dog", "--out", tmp_path / "dogs.png")[0] == 0
    status, _, err = run(capsys, "evaluate", model, "--n", 6)
    assert (status, "draws latents: give the images that proxflow sample" in err) == (2, True)

    moved = tmp_path / "moved"
    shutil.copytree(tiny, moved)
    held = json.loads((model / "config.json").read_text())
    held["data"]["found"] = f"kl:path={tmp_path / 'gone'}"
    (model / "config.json").write_text(json.dumps(held))
    status, _, err = run(capsys, *sample, "--out", tmp_path / "y.npz")
    assert (status, "gone: holds no autoencoder" in err, "give --encoder DIR, or --encoder none" in err) == (
        2,
        True,
        True,
    )
    assert run(capsys, *sample, "--encoder", moved, "--out", tmp_path / "y.npz")[0] == 0
    assert (np.load(tmp_path / "y.npz")["images"] == np.load(tmp_path / "x.npz")["images"]).all()
    assert run(capsys, *sample, "--encoder", "none", "--out", tmp_path / "y.png")[0] == 2
    torch.manual_seed(1)
    nn.init.normal_(theirs.decoder.conv_out.weight)
    theirs.save_pretrained(moved)
    status, _, err = run(capsys, *sample, "--encoder", moved, "--out", tmp_path / "y.npz")
    assert (status, "has other weights" in err) == (2, True)
    status, _, err = run(capsys, *command[:5], moved, *command[6:])
    assert (status, "its encoder is" in err) == (2, True)
    assert run(capsys, *command)[0] == 0  # all is there


def test_folders_that_hold_no_autoencoder_are_refused(tiny, tmp_path, monkeypatch):
    place = tmp_path / "ae"
    with pytest.raises(DataError, match="holds no autoencoder; expected a folder with config"):
        KL(str(place)).load()
    shutil.copytree(tiny, place)
    config = json.loads((place / "config.json").read_text())
    weights = place / "diffusion_pytorch_model.safetensors"
    held = weights.read_bytes()
    for change, message in (
        ({"_class_name": "VQModel"}, "holds 'VQModel'; expected an AutoencoderKL"),
        ({"latent_channels": 3}, "cannot be loaded"),
        ({"block_out_channels": [8, 8, 8], "down_block_types": ["DownEncoderBlock2D"] * 3}, "its weights (lack|have)"),
    ):
        (place / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(DataError, match=message) as refused:
            KL(str(place)).load()
        assert "\n" not in str(refused.value)
    (place / "config.json").write_text(json.dumps(config))
    weights.write_bytes(held[:100])
    with pytest.raises(DataError, match="cannot be loaded"):
        KL(str(place)).load()
    weights.rename(place / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"pickled weights alone \(diffusion_pytorch_model\.bin\), which are not read"):
        KL(str(place)).load()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ArgumentError, match=r'pip install "proxflow\[latents\]"'):
        KL(str(tiny)).load()
