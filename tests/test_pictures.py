"""Folders of pictures of any size, grey or colour, and training on them."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from proxflow import data
from proxflow.cli import main
from proxflow.errors import ArgumentError, DataError


def put(path, pixels, mode=None, **words):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(pixels, np.uint16 if mode == "I;16" else np.uint8))
    (picture.convert(mode) if mode not in (None, "I;16") else picture).save(path, **words)


def test_grey_pictures_of_one_size_are_read_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    for index, name in enumerate(("a.png", "b/c.bmp", "d.PNG")):
        put(tmp_path / name, pixels[index])
    (tmp_path / "notes.txt").write_text("no picture")
    found = data.read_pictures(tmp_path)
    order = [0, 2, 1]  # the folder's own before those of the folders in it
    assert found.dtype == torch.uint8
    assert (found[:, 0].numpy() == pixels[order]).all()


def test_one_coloured_picture_makes_all_of_them_colour(tmp_path):
    put(tmp_path / "a.png", np.full((4, 4), 9))
    put(tmp_path / "b.png", np.full((4, 4, 3), (1, 2, 3)))
    found = data.read_pictures(tmp_path)
    assert found.shape == (2, 3, 4, 4)
    assert found[0].unique().tolist() == [9]
    assert found[1, :, 0, 0].tolist() == [1, 2, 3]


def test_every_kind_of_pixel_becomes_bytes(tmp_path):
    put(tmp_path / "a.png", np.full((4, 4), 200 * 256 + 17), "I;16")
    put(tmp_path / "b.png", np.full((4, 4), 255), "1")
    put(tmp_path / "c.png", np.dstack([np.full((4, 4), 10), np.zeros((4, 4))]), None)  # grey and transparent
    found = data.read_pictures(tmp_path)
    assert found.shape == (3, 1, 4, 4)
    assert [image.unique().tolist() for image in found] == [[200], [255], [255]]

    put(tmp_path / "d.png", np.full((4, 4, 4), (10, 20, 30, 255)))
    put(tmp_path / "e.png", np.full((4, 4, 3), (10, 20, 30)), "P")
    put(tmp_path / "f.jpg", np.full((4, 4, 3), (10, 20, 30)), "CMYK", quality=100)
    colours = data.read_pictures(tmp_path)[3:, :, 0, 0].numpy().astype(int)
    np.testing.assert_allclose(colours, [[10, 20, 30]] * 3, atol=26)  # palettes and JPEG round


def test_unequal_sizes_are_cut_to_squares_around_the_middle(tmp_path):
    left, middle, right = (np.full((8, 4, 3), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    put(tmp_path / "wide.png", np.concatenate([left, middle, middle, right], axis=1))
    put(tmp_path / "tall.png", np.full((20, 10, 3), 7))
    found = data.read_pictures(tmp_path)
    assert found.shape == (2, 3, 8, 8)  # the smallest side
    assert found[1, :, 4, 4].tolist() == [0, 255, 0]
    assert found[1, 0].max() == 0  # the ends are cut off
    assert data.read_pictures(tmp_path, 5).shape == (2, 3, 5, 5)
    put(tmp_path / "large.png", np.zeros((100, 90)))
    put(tmp_path / "tall.png", np.zeros((200, 100)))
    put(tmp_path / "wide.png", np.zeros((80, 100)))
    assert data.read_pictures(tmp_path).shape == (3, 1, 64, 64)


def test_pictures_are_turned_as_their_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    put(tmp_path / "a.jpg", np.zeros((4, 8)), exif=exif)
    put(tmp_path / "b.png", np.zeros((8, 4)))
    assert data.read_pictures(tmp_path).shape == (2, 1, 8, 4)


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        data.read_pictures(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        data.read_pictures(tmp_path / "nowhere")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        data.read_pictures(tmp_path)
    put(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (40, 40)))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"a\.png: cannot be read.*intact picture"):
        data.read_pictures(tmp_path)
    with pytest.raises(ArgumentError, match="1 to 4096, got 0"):
        data.read_pictures(tmp_path, 0)


def test_a_picture_may_not_claim_unbounded_memory(tmp_path):
    put(tmp_path / "a.png", np.zeros((4, 4)))
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = (30_000).to_bytes(4, "big") + (20_000).to_bytes(4, "big")
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png: (cannot be read|has 30000 x 20000 pixels)"):
        data.read_pictures(tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path):
    put(tmp_path / "secret.png", np.zeros((4, 4)))
    (tmp_path / "in").mkdir()
    os.symlink(tmp_path / "secret.png", tmp_path / "in" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is a link that leads out of"):
        data.read_pictures(tmp_path / "in")


TINY = ("--network", "unet:channels=8,multipliers=1,patch=4", "--device", "cpu", "--batch-size", "4")


def train(tmp_path, *words):
    return main(["train", "--out", str(tmp_path / "run"), "--data", str(tmp_path / "own"), *TINY, *map(str, words)])


def test_training_on_ones_own_pictures(tmp_path, capsys):
    chance = np.random.default_rng(0)
    for index in range(40):
        height, width = chance.integers(9, 14, 2)
        put(tmp_path / "own" / f"{index % 3}" / f"{index}.png", chance.integers(0, 256, (height, width, 3)))
    words = ("--steps", 60, "--checkpoint-every", 20, "--size", 8, "--held-out", 0.25, "--grid", 5, "--tensorboard")
    assert train(tmp_path, *words) == 0
    out, run = capsys.readouterr().out, tmp_path / "run"
    assert "on 30 images of 8 x 8" in out
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["shape"] == [3, 8, 8]
    assert config["provenance"]["held_out"] == 10
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = {entry["step"]: entry["held_out_loss"] for entry in log if "held_out_loss" in entry}
    assert list(losses) == [20, 40, 60]
    best = json.loads((run / "best" / "config.json").read_text())["provenance"]
    assert best["held_out_loss"] == min(losses.values())
    assert losses[best["steps"]] == best["held_out_loss"]
    for step in losses:
        with Image.open(run / "samples" / f"step-{step:08d}.png") as picture:
            assert (picture.mode, picture.size) == ("RGB", (3 * 10 + 2, 2 * 10 + 2))
    assert any((run / "tensorboard").glob("events.*"))
    assert not (run / "checkpoints").exists()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"loss", "held_out_loss", "learning_rate", "gradient_norm", "skipped"} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("held_out_loss")] == pytest.approx(list(losses.values()))
    assert events.Tags()["images"] == ["samples"]


def test_what_cannot_be_held_out_or_resized_is_refused(tmp_path, capsys):
    put(tmp_path / "own" / "a.png", np.zeros((8, 8)))
    for words, said in ((("--held-out", 1.0), "[0, 1)"), (("--grid", -1), "--grid"), (("--size", 0), "1 to 4096")):
        assert train(tmp_path, *words) == 2
        assert said in capsys.readouterr().err
    assert main(["train", "--out", str(tmp_path / "run"), "--size", "8", *TINY]) == 2
    assert "size is for folders of pictures" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
