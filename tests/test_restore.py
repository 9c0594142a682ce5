"""The command that restores pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from proxflow.cli import main
from proxflow.data import load
from proxflow.metrics import load_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("digits")
    for k, picture in enumerate(load("mnist", "test").images[:2]):
        Image.fromarray(picture[0].numpy()).save(place / f"{k}.png")
    return place


def restored(*words, out):
    assert main([*map(str, ("restore", "--draws", 3, *words, "--nfe", 8, "--out", out))]) == 0
    assert {path.name for path in out.iterdir()} >= {"draws.png", "mean.png", "spread.png", "strip.png"}
    with np.load(out / "draws.npz") as file:
        return file["images"], json.loads((out / "report.json").read_text())


def test_what_is_seen_is_kept_and_what_is_gone_differs(folder, tmp_path):
    images, told = restored(folder, "--box", 0, 14, 28, 14, "--noise", 0, out=tmp_path / "out")
    assert told["box"] == [0, 14, 28, 14]
    assert images.shape == (6, 28, 28, 1)
    assert (told["method"], told["pictures"], told["draws"]) == ("flower", 2, 3)
    for k in range(2):
        whole = np.array(Image.open(folder / f"{k}.png"))
        for draw in images[3 * k : 3 * k + 3, ..., 0]:
            np.testing.assert_array_equal(draw[:14], whole[:14])
    assert len({draw[14:].tobytes() for draw in images}) == 6


def test_levels_beyond_bytes_and_transparency_are_read_as_in_training(folder, tmp_path):
    bytes_of = np.array(Image.open(folder / "0.png"))
    Image.fromarray(bytes_of.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(bytes_of.astype(np.float32) / 255).save(tmp_path / "real.tif")
    Image.merge("LA", [Image.fromarray(bytes_of), Image.new("L", (28, 28), 255)]).save(tmp_path / "opaque.png")
    words = ("--box", 0, 14, 28, 14, "--noise", 0)
    plain, _ = restored(folder / "0.png", *words, out=tmp_path / "plain")
    for name in ("deep.png", "real.tif", "opaque.png"):
        images, _ = restored(tmp_path / name, *words, out=tmp_path / name.replace(".", "-"))
        assert np.abs(images.astype(int) - plain).max() <= 1, name


def test_a_class_that_is_told_is_drawn(folder, tmp_path):
    words = ("--box", 0, 4, 28, 24, "--model", "mnist-classes", "--draws", 12)
    images, told = restored(folder / "0.png", *words, "--class", 3, out=tmp_path / "three")
    assert told["class"] == ["3"]
    judge = load_classifier("mnist")
    found = judge(torch.tensor(images[..., 0]).float()[:, None] / 127.5 - 1).argmax(1)
    assert float((found == 3).double().mean()) > 0.7
    both, _ = restored(folder, *words, "--class", 3, 3, out=tmp_path / "both")
    assert np.abs(both[:12].astype(int) - images).max() <= 1


def test_undoing_a_wide_blur_without_noise_keeps_digits(folder, tmp_path):
    images, _ = restored(folder, "--task", "deblur", "--degrade", "--noise", 0, out=tmp_path / "out")
    whole = np.stack([np.array(Image.open(folder / f"{k}.png")) for k in range(2)]).astype(float)
    error = np.abs(images[..., 0].reshape(2, 3, 28, 28) - whole[:, None]).mean()
    assert error < 12, error  # of 255


def test_a_small_picture_is_what_the_draws_reduce_to(folder, tmp_path):
    whole = Image.open(folder / "0.png")
    whole.resize((7, 7), Image.Resampling.BOX).save(tmp_path / "small.png")
    images, _ = restored(tmp_path / "small.png", "--task", "superres", "--noise", 0, out=tmp_path / "out")
    small = torch.nn.functional.avg_pool2d(torch.tensor(images[..., 0]).float()[:, None], 4)[:, 0]
    wanted = torch.tensor(np.array(Image.open(tmp_path / "small.png"))).float()
    assert float((small - wanted).abs().mean()) < 4  # draws are cut to bytes
    images, told = restored(folder, "--task", "deblur", "--degrade", "--method", "mmps", out=tmp_path / "blurred")
    assert (tmp_path / "blurred" / "observed.png").is_file()
    assert told["sampler"] == "marginal"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--task", "inpaint"), "needs --mask PATH or --box"),
        (("--task", "deblur", "--box", "0", "0", "1", "1"), "for inpaint"),
        (("--box", "0", "30", "1", "1"), "within 28 x 28"),
        (("--box", "0", "14", "28", "40"), "within 28 x 28, got 0 14 28 40"),
        (("--box", "0", "0", "28", "28"), "nothing of the pictures is known"),
        (
            ("--box", "0", "0", "1", "1", "--nfe", "99999999"),
            "--nfe, the number of network evaluations, must be at most 1000000",
        ),
        (("--task", "superres", "--factor", "3"), "--factor divides"),
        (("--task", "superres"), "need 7 x 7"),
        (("--task", "denoise", "--method", "magic"), "known are flower"),
        (("--task", "denoise", "--noise", "-1"), "not negative"),
        (("--task", "denoise", "--model", "nonesuch"), "no model"),
        (("--task", "denoise", "--model", "mnist-classes-few"), "predicts no means, which an observation refines"),
        (("--task", "deblur", "--noise", "0"), "makes their rounding the larger part: give --noise"),
        (("--task", "denoise", "--class", "7"), "this one has no classes"),
        (("--task", "denoise", "--model", "mnist-classes", "--class", "1", "2", "3"), "3 classes for 2 pictures"),
        (("--task", "inpaint", "--mask", "."), "--mask is one picture"),
    ],
)
def test_bad_input_is_refused_in_one_line(folder, tmp_path, capsys, words, says):
    assert main(["restore", str(folder), *words, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()
