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
    assert main([*map(str, ("restore", "--draws", 3, "--nfe", 8, *words, "--out", out))]) == 0
    assert {path.name for path in out.iterdir()} >= {"draws.png", "mean.png", "strip.png", "report.json"}
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


def test_denoising_leaves_no_grain_in_the_background(folder, tmp_path):
    words = (folder / "0.png", "--task", "denoise", "--noise", 0.3, "--degrade")
    whole = np.array(Image.open(folder / "0.png"))

    def grain(images):
        return float(np.sqrt(np.square(images[:, whole == 0, 0].astype(float)).mean()))

    images, told = restored(*words, out=tmp_path / "out")
    assert told["method"] == "mmps"
    plain, _ = restored(*words, "--method", "flower", out=tmp_path / "flower")
    assert grain(images) < 8 < grain(plain)  # of 255; the noise is 38


def test_a_restore_that_is_stopped_while_it_writes_can_be_given_again(folder, tmp_path, monkeypatch):
    from proxflow.data import image_files

    written = image_files.write

    def stops(path, images):
        if path.name == "mean.png":
            raise KeyboardInterrupt
        written(path, images)

    words = (
        "restore",
        str(folder),
        "--draws",
        "2",
        "--nfe",
        "2",
        "--box",
        "0",
        "14",
        "28",
        "14",
        "--out",
        str(tmp_path / "o"),
    )
    monkeypatch.setattr(image_files, "write", stops)
    assert main([*words]) != 0
    monkeypatch.setattr(image_files, "write", written)
    assert (tmp_path / "o" / "draws.png").exists()
    assert main([*words]) == 0


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
        (("--task", "superres"), "0.png: is of 28 x 28 pixels, and pictures of 7 x 7"),
        (("--task", "superres", "--factor", "1"), "at least 2, got 1"),
        (
            ("--task", "deblur", "--sigma", "0"),
            "--sigma, the standard deviation of the blur in pixels, must be above 0",
        ),
        (("--task", "deblur", "--sigma", "nan"), "at most the picture's side, 28; got nan"),
        (("--task", "denoise", "--noise", "0"), "has nothing to mend"),
        (("--task", "denoise", "--method", "jfps"), "which only Python's proxflow.Posterior takes"),
        (("--task", "denoise", "--method", "bayes"), "is for models of black and white pixels"),
        (("--box", "0", "0", "1", "1", "--mask", "known.png"), "each say what is gone: give one of them"),
        (
            ("--box", "0", "0", "1", "1", "--model", "mnist-classes", "--guidance", "2"),
            "name one, by --class or --weak",
        ),
        (("--box", "0", "0", "1", "1", "--guidance-interval", "0.2", "0.8"), "give --guidance"),
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


def contents(place):
    return {path.name: path.read_bytes() for path in place.iterdir()}


@pytest.mark.parametrize("given", ["own", "own/mean.png", "other.png"])
def test_pictures_of_the_user_are_never_written_over(folder, tmp_path, capsys, given):
    own = tmp_path / "own"
    own.mkdir()
    for name in ("mean.png", "one.png"):
        (own / name).write_bytes((folder / "0.png").read_bytes())
    (tmp_path / "other.png").write_bytes((folder / "1.png").read_bytes())
    before = contents(own)
    words = ("restore", tmp_path / given, "--box", 0, 14, 28, 14, "--draws", 2, "--nfe", 1, "--out", own)
    assert main([*map(str, words)]) == 2
    message = capsys.readouterr().err
    assert "choose an" in message
    assert message.count("\n") == 1
    assert contents(own) == before


def test_a_picture_in_the_place_of_a_former_result_is_kept(folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = (folder / "0.png", "--box", 0, 14, 28, 14, "--nfe", 1)
    restored(*words, out=out)
    before = contents(out)
    assert main([*map(str, ("restore", out / "mean.png", *words[1:], "--out", out))]) == 2
    assert "mean.png is read and would be overwritten" in capsys.readouterr().err
    assert contents(out) == before


def test_files_of_a_former_restore_are_gone_and_others_stay(folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = (folder / "0.png", "--box", 0, 14, 28, 14, "--nfe", 2)
    _, told = restored(*words, "--degrade", out=out)
    assert told["degrade"] is True
    assert told["mean_spread"] > 0
    assert {"observed.png", "spread.png"} <= contents(out).keys()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    capsys.readouterr()
    _, told = restored(*words, "--draws", 1, out=out)
    assert told["degrade"] is False
    assert "mean_spread" not in told
    assert contents(out).keys() == {"draws.png", "draws.npz", "mean.png", "strip.png", "report.json", "notes.txt"}
    assert "no spread of one draw" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_what_is_transparent_is_not_guessed(folder, tmp_path, capsys, mode):
    seen = Image.open(folder / "0.png")
    place = tmp_path / "alpha.png"
    if mode == "P":
        seen.convert("P").save(place, transparency=0)
    elif mode == "I;16":
        Image.fromarray(np.array(seen).astype(np.uint16) * 257).save(place, transparency=0)
    else:
        white = Image.new("L", seen.size, 255)
        Image.merge(mode, [white] * (len(mode) - 1) + [seen]).save(place)
    for words in ((place, "--box", 0, 14, 28, 14), (folder / "0.png", "--mask", place)):
        assert main([*map(str, ("restore", *words, "--out", tmp_path / "out"))]) == 2
        assert "alpha.png: is transparent in parts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_mask_of_greys_is_taken_as_is_said_and_one_that_leaves_nothing_out_is_refused(folder, tmp_path, capsys):
    levels = np.full((28, 28), 255, np.uint8)
    Image.fromarray(levels).save(tmp_path / "white.png")
    levels[14:], levels[14] = 127, 128
    Image.fromarray(levels).save(tmp_path / "grey.png")
    assert main([*map(str, ("restore", folder, "--mask", tmp_path / "white.png", "--out", tmp_path / "out"))]) == 2
    assert "nothing of the pictures is gone" in capsys.readouterr().err
    words = (folder / "0.png", "--mask", tmp_path / "grey.png", "--noise", 0, "--nfe", 2)
    images, _ = restored(*words, out=tmp_path / "out")
    assert "392 pixels of" in capsys.readouterr().out
    whole = np.array(Image.open(folder / "0.png"))
    assert (images[0, :15, :, 0] == whole[:15]).all()
    assert (images[0, 15:, :, 0] != whole[15:]).any()


def test_draws_are_led_to_a_class_and_their_evaluations_counted(folder, tmp_path):
    words = (folder / "0.png", "--box", 0, 10, 28, 18, "--model", "mnist-classes", "--class", 9, "--draws", 12)
    judge = load_classifier("mnist")
    sure = {}
    for weight in (1, 3):
        images, told = restored(*words, "--guidance", weight, out=tmp_path / str(weight))
        assert told["evaluations"] == 8 * min(weight, 2)
        assert told.get("guidance") == (3 if weight == 3 else None)
        sure[weight] = judge(torch.tensor(images[..., 0]).float()[:, None] / 127.5 - 1).softmax(1)[:, 9].mean()
    assert sure[3] > sure[1] + 0.05
    _, told = restored(*words, "--guidance", 3, "--guidance-interval", 0.3, 0.7, out=tmp_path / "part")
    assert 8 < told["evaluations"] < 16
    assert told["guidance_interval"] == [0.3, 0.7]


def test_pictures_have_their_names_and_a_row_of_draws_each(folder, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    (mixed / "in").mkdir(parents=True)
    (mixed / "b.png").write_bytes((folder / "0.png").read_bytes())
    (mixed / "in" / "a.png").write_bytes((folder / "1.png").read_bytes())
    Image.open(folder / "0.png").save(mixed / "c.gif")
    images, told = restored(mixed, "--box", 0, 14, 28, 14, "--nfe", 1, out=tmp_path / "out")
    assert told["names"] == ["b.png", "in/a.png"]
    assert "files of other kinds: 1 (as c.gif)" in capsys.readouterr().out
    drawn = np.array(Image.open(tmp_path / "out" / "draws.png"))
    assert drawn.shape == (2 * 30 + 2, 3 * 30 + 2)
    assert (drawn[32:60, 2:30] == images[3, ..., 0]).all()


def test_the_picture_that_does_not_fit_is_named(folder, tmp_path, capsys):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    Image.open(folder / "0.png").crop((0, 0, 28, 20)).save(wrong / "a.png")
    (wrong / "b.png").write_bytes((folder / "1.png").read_bytes())
    for given, says in (
        (wrong, "a.png: is of 20 x 28 pixels"),
        (tmp_path / "d.gif", "d.gif: is a GIF, which is not read"),
    ):
        Image.open(folder / "0.png").save(tmp_path / "d.gif")
        assert main([*map(str, ("restore", given, "--box", 0, 14, 28, 14, "--out", tmp_path / "out"))]) == 2
        assert says in capsys.readouterr().err
