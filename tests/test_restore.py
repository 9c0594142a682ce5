"""The command that restores pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from proxflow.cli import main
from proxflow.data import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("digits")
    for k, picture in enumerate(load("mnist", "test").images[:2]):
        Image.fromarray(picture[0].numpy()).save(place / f"{k}.png")
    return place


def restored(*words, out):
    assert main([*map(str, ("restore", *words, "--nfe", 8, "--draws", 3, "--out", out))]) == 0
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
    ],
)
def test_bad_input_is_refused_in_one_line(folder, tmp_path, capsys, words, says):
    assert main(["restore", str(folder), *words, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()
