"""Folders of pictures of any size, grey or colour, and training on them."""

import io
import json
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from proxflow import data
from proxflow.cli import main
from proxflow.data import image_files
from proxflow.data.pictures import read_pictures, survey
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


def test_unequal_sizes_are_cut_around_the_middle(tmp_path):
    left, middle, right = (np.full((8, 4, 3), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    put(tmp_path / "wide.png", np.concatenate([left, middle, middle, right], axis=1))
    put(tmp_path / "tall.png", np.full((20, 10, 3), 7))
    found = data.read_pictures(tmp_path)
    assert found.shape == (2, 3, 8, 10)  # of two, the lower height and the lower width
    assert found[1, :, 4, 5].tolist() == [0, 255, 0]
    assert found[1, 0, :, 1:].max() == 0  # the ends are cut off, but for the last of 4 columns that 3 of 10 show
    assert data.read_pictures(tmp_path, 5).shape == (2, 3, 5, 5)
    put(tmp_path / "large.png", np.zeros((100, 90)))
    put(tmp_path / "tall.png", np.zeros((200, 100)))
    put(tmp_path / "wide.png", np.zeros((80, 100)))
    assert data.read_pictures(tmp_path).shape == (3, 1, 64, 64)  # of medians 100 x 100


def test_equal_and_nearly_equal_sizes_have_one_rule(tmp_path):
    for index in range(3):
        put(tmp_path / f"{index}.png", np.zeros((150, 200)))
    equal = survey(tmp_path)
    assert equal.shape == (1, 64, 85)
    assert equal.memory == "0.0 MB in memory"
    assert ", scaled and cut from up to 150 x 200 (" in equal.scaling
    put(tmp_path / "0.png", np.zeros((150, 199)))
    assert survey(tmp_path).shape == (1, 64, 85)
    put(tmp_path / "0.png", np.zeros((3, 4)))
    assert survey(tmp_path).shape == (1, 64, 85)  # one odd picture decides nothing
    assert "from 3 x 4 to 150 x 200, 1 of them enlarged" in survey(tmp_path).scaling
    put(tmp_path / "0.png", np.zeros((4000, 3000)))
    assert survey(tmp_path).shape == (1, 64, 85)
    assert survey(tmp_path, 100).shape == (1, 100, 100)
    for index in range(3):
        put(tmp_path / f"{index}.png", np.zeros((60, 64)))
    assert survey(tmp_path).shape == (1, 60, 64)  # small enough to stay
    assert survey(tmp_path).scaling == ""


def test_what_must_not_be_resized_is_read_as_it_is_or_refused(tmp_path):
    put(tmp_path / "0.png", np.zeros((100, 90)))
    assert data.read_pictures(tmp_path, resize=False).shape == (1, 1, 100, 90)
    put(tmp_path / "1.png", np.zeros((100, 91)))
    with pytest.raises(DataError, match=r"1\.png: has height and width \(100, 91\), but 0\.png has \(100, 90\)"):
        data.read_pictures(tmp_path, resize=False)


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


def test_links_are_followed_to_pictures_and_folders(tmp_path):
    put(tmp_path / "blobs" / "abc", np.full((4, 4), 7), format="PNG")
    put(tmp_path / "real" / "1.png", np.full((4, 4), 8))
    put(tmp_path / "in" / "cats" / "1.png", np.full((4, 4), 9))
    os.symlink(tmp_path / "blobs" / "abc", tmp_path / "in" / "a.png")  # as caches of downloads have it
    os.symlink(tmp_path / "real", tmp_path / "in" / "dogs")
    os.symlink(tmp_path / "in", tmp_path / "in" / "cats" / "around")
    os.symlink(tmp_path / "in" / "cats", tmp_path / "in" / "cats" / "itself")
    found = data.read_pictures(tmp_path / "in")
    assert found[:, 0, 0, 0].tolist() == [7, 9, 8]
    os.symlink(tmp_path / "nothing", tmp_path / "in" / "b.png")
    with pytest.raises(DataError, match=r"b\.png: cannot be read"):
        data.read_pictures(tmp_path / "in")


@pytest.mark.parametrize("mark", ["run.json", "model.safetensors"])
def test_folders_of_training_runs_are_no_data(tmp_path, mark):
    put(tmp_path / "a.png", np.zeros((4, 4)))
    put(tmp_path / "run" / "samples" / "step-1.png", np.zeros((40, 40)))
    assert len(data.read_pictures(tmp_path)) == 2
    (tmp_path / "run" / mark).write_text("{}")
    found = survey(tmp_path)
    assert found.shape == (1, 4, 4)
    assert found.left_out.record == {"folders that proxflow wrote": {"number": 1, "example": "run"}}


def spoilt(name, picture):
    """An intact picture with metadata that are not."""
    file = io.BytesIO()
    if name == "exif":
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 1, "Camera maker with a long name"
        picture.save(file, "JPEG", exif=exif.tobytes()[:-14])
        return file.getvalue(), ".jpg"
    if name == "several pictures":
        picture.save(file, "MPO", save_all=True, append_images=[picture])
        content = bytearray(file.getvalue())
        place = content.index(b"MPF\0") + 4
        content[place : place + 4] = b"XX*\0"
        return bytes(content), ".jpg"
    picture.save(file, "TIFF")
    content = bytearray(file.getvalue())
    start = struct.unpack("<I", content[4:8])[0]
    for k in range(struct.unpack("<H", content[start : start + 2])[0]):
        entry = start + 2 + 12 * k
        if struct.unpack("<H", content[entry : entry + 2])[0] == 284:
            content[entry + 4 : entry + 8] = struct.pack("<I", 2)
    return bytes(content), ".tif"


@pytest.mark.parametrize("name", ["exif", "several pictures", "tags"])
def test_intact_pixels_with_spoilt_metadata_are_read(tmp_path, name, recwarn):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    content, ending = spoilt(name, Image.fromarray(pixels))
    (tmp_path / f"a{ending}").write_bytes(content)
    found = data.read_pictures(tmp_path)
    with Image.open(tmp_path / f"a{ending}") as picture:
        assert (found[0].permute(1, 2, 0).numpy() == np.asarray(picture)).all()


def test_a_wrong_checksum_counts_only_where_pixels_need_the_chunk(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    told, file = PngInfo(), io.BytesIO()
    told.add_text("Title", "a picture of noise")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", pnginfo=told)
    for kind, intact in ((b"tEXt", True), (b"IDAT", False)):
        content = bytearray(file.getvalue())
        content[content.index(kind) + 8] ^= 1
        (tmp_path / "a.png").write_bytes(content)
        if intact:
            assert (data.read_pictures(tmp_path)[0, 0].numpy() == pixels).all()
        else:
            with pytest.raises(DataError, match="cannot be read"):
                data.read_pictures(tmp_path)


RAMP = np.add.outer(np.arange(32), np.arange(32))


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.fromarray((RAMP / 62).astype(np.float32)), (RAMP / 62 * 255).round()),
        (Image.fromarray((RAMP * 66).astype(np.uint16)), RAMP * 66 // 16),  # 12 bits
        (Image.fromarray((RAMP * 1040).astype(np.uint16)), RAMP * 1040 // 256),
        (Image.fromarray((RAMP * 1040).astype(np.int32)), RAMP * 1040 // 256),
        (Image.frombytes("I;16B", (32, 32), (RAMP * 1040).astype(">u2").tobytes()), RAMP * 1040 // 256),
        (Image.fromarray((RAMP * 4).astype(np.int32)), RAMP * 4),  # bytes
    ],
)
def test_grey_levels_beyond_bytes_are_kept(tmp_path, picture, expected):
    picture.save(tmp_path / "a.tif")
    found = data.read_pictures(tmp_path)
    assert found.shape == (1, 1, 32, 32)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-9)


def test_the_deepest_picture_sets_the_scale_of_all(tmp_path):
    put(tmp_path / "a.png", np.full((4, 4), 800), "I;16")
    put(tmp_path / "b.png", np.full((4, 4), 4000), "I;16")
    put(tmp_path / "c.png", np.full((4, 4), 99))
    assert data.read_pictures(tmp_path)[:, 0, 0, 0].tolist() == [50, 250, 99]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (
            np.full((4, 4), 1.5, np.float32),
            r"a\.tif: has real levels from 1\.5 to 1\.5; expected 0 \(black\) to 1",
        ),
        (np.full((4, 4), np.nan, np.float32), r"a\.tif: has real levels from nan"),
        (np.full((4, 4), -1, np.int32), r"a\.tif: has levels from -1 to -1; expected 0 to 65535"),
        (np.full((4, 4), 70000, np.int32), r"a\.tif: has levels from 70000"),
    ],
)
def test_levels_without_a_rule_are_refused_by_name(tmp_path, levels, message):
    Image.fromarray(levels).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=message):
        data.read_pictures(tmp_path)


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
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000060"]

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


# What is left out, and what is read again --------------------------------------------------------------------------------


def left(folder, **told):
    return {reason: (n["number"], n["example"]) for reason, n in survey(folder, **told).left_out.record.items()}


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    put(tmp_path / "a.png", np.zeros((4, 4)))
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    put(tmp_path / ".hidden.png", np.zeros((4, 4)))
    put(tmp_path / ".cache" / "b.png", np.zeros((4, 4)))
    put(tmp_path / "run" / "samples" / "c.png", np.zeros((4, 4)))
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "cells").mkdir()  # as an experiment leaves it
    os.symlink("a.png", tmp_path / "link.png")
    os.symlink(tmp_path, tmp_path / "around")
    pages = [Image.fromarray(np.full((4, 4), k, np.uint8)) for k in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert left(tmp_path) == {
        "files of other kinds": (2, "b.gif"),
        "hidden files": (1, ".hidden.png"),
        "hidden folders": (1, ".cache"),
        "folders that proxflow wrote": (1, "run"),
        "links to what is read already": (2, "around"),
        "further pictures within files": (2, "pages.tif"),
    }
    assert len(data.read_pictures(tmp_path)) == 2


def test_two_links_to_one_folder_are_read_once(tmp_path):
    put(tmp_path / "real" / "1.png", np.zeros((4, 4)))
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        os.symlink(tmp_path / "real", tmp_path / "in" / name)
    assert len(data.read_pictures(tmp_path / "in")) == 1
    assert left(tmp_path / "in") == {"links to what is read already": (1, "b")}


def test_the_output_folder_is_no_data(tmp_path):
    put(tmp_path / "a.png", np.zeros((4, 4)))
    put(tmp_path / "deep" / "runs" / "x" / "b.png", np.zeros((40, 40)))
    out = tmp_path / "deep" / "runs" / "x"
    assert left(tmp_path, exclude=out) == {"places for the output": (1, "deep/runs/x")}
    assert survey(tmp_path, exclude=out).shape == (1, 4, 4)
    os.symlink(out, tmp_path / "again")  # another way there
    assert len(survey(tmp_path, exclude=out).paths) == 1
    assert len(survey(tmp_path, exclude=tmp_path).paths) == 2  # the folder itself may hold both


def test_what_this_library_drew_is_no_data_beside_other_pictures(tmp_path):
    from proxflow.data import image_files

    chance = np.random.default_rng(0)
    drawn = chance.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    image_files.write(tmp_path / "drawn", drawn)
    image_files.write(tmp_path / "samples.png", drawn)
    assert (
        data.read_pictures(tmp_path).numpy() == drawn.transpose(0, 3, 1, 2)
    ).all()  # asked for alone, without the grid
    assert left(tmp_path) == {"grids and charts that proxflow drew": (1, "samples.png")}
    put(tmp_path / "mine.png", chance.integers(0, 256, (8, 8, 3)))
    assert len(data.read_pictures(tmp_path)) == 1
    assert left(tmp_path)["samples that proxflow drew"] == (5, "drawn/00000.png")
    (tmp_path / "mine.png").unlink()
    shutil.rmtree(tmp_path / "drawn")
    with pytest.raises(DataError, match=r"holds no pictures .* left out: grids and charts that proxflow drew: 1"):
        data.read_pictures(tmp_path)


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_pictures_that_are_no_files_are_refused_by_name(tmp_path, what):
    put(tmp_path / "b.png", np.zeros((4, 4)))
    if what == "folder":
        (tmp_path / "a.png").mkdir()
        assert len(data.read_pictures(tmp_path)) == 1  # a folder of pictures may have any name
        return
    os.mkfifo(tmp_path / "a.png") if what == "pipe" else os.symlink("/dev/zero", tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: cannot be read \(it is a .*, not a plain file\)"):
        data.read_pictures(tmp_path)


GREY, COLOUR = (np.random.default_rng(3).integers(0, 256, s, dtype=np.uint8) for s in ((16, 12), (16, 12, 3)))
FORMS = {
    "png": (GREY, ".png", {}),
    "bmp": (GREY, ".bmp", {}),
    "tiff": (GREY, ".tif", {}),
    "packed tiff": (GREY, ".tiff", {"compression": "tiff_lzw"}),
    "webp": (COLOUR, ".webp", {"lossless": True}),
    "colour png": (COLOUR, ".png", {}),
    "colour tiff": (COLOUR, ".tif", {"compression": "tiff_deflate"}),
    "colour bmp": (COLOUR, ".bmp", {}),
    "two levels": ((GREY > 99), ".png", {}),
    "16 bits": (GREY.astype(np.uint16) * 256, ".png", {}),
    "12 bits": (GREY.astype(np.uint16) * 16, ".tif", {}),
    "big endian": (GREY.astype(">u2") * 256, ".tif", {}),
    "32 bits": (GREY.astype(np.int32), ".tif", {}),
    "real": ((GREY / 255).astype(np.float32), ".tif", {}),
    "signed real": ((GREY / 127.5 - 1).astype(np.float32), ".tif", {}),
    "real bytes": (GREY.astype(np.float32), ".tif", {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_written_and_read_again_is_the_same(tmp_path, form):
    pixels, ending, words = FORMS[form]
    (tmp_path / "in").mkdir()
    big = pixels.dtype.str == ">u2"
    picture = Image.frombytes("I;16B", (12, 16), pixels.tobytes()) if big else Image.fromarray(pixels)
    picture.save(tmp_path / "in" / f"a{ending}", **words)
    from proxflow.data.kinds.image import Image as Kind

    first = Kind.read(str(tmp_path / "in"), held_out=0)
    expected = GREY if pixels.ndim == 2 and pixels.dtype != bool else pixels * (255 if pixels.dtype == bool else 1)
    assert (first.train.x[0].permute(1, 2, 0).numpy().squeeze() == expected).all()
    for out in ("again", "again.npz"):
        first.kind.write(tmp_path / out, first.train.x)
        again = Kind.read(str(tmp_path / out), held_out=0)
        assert torch.equal(again.train.x, first.train.x)
        assert again.kind == first.kind


def test_real_levels_have_one_rule_for_the_folder(tmp_path):
    for name, level in (("a", 0.5), ("b", -1.0)):
        Image.fromarray(np.full((4, 4), level, np.float32)).save(tmp_path / f"{name}.tif")
    assert data.read_pictures(tmp_path)[:, 0, 0, 0].tolist() == [191, 0]  # of -1 to 1, as one of them is below 0
    Image.fromarray(np.full((4, 4), 200.5, np.float32)).save(tmp_path / "b.tif")
    Image.fromarray(np.full((4, 4), 100.5, np.float32)).save(tmp_path / "a.tif")
    assert data.read_pictures(tmp_path)[:, 0, 0, 0].tolist() == [100, 200]


def test_a_run_says_what_it_reads_and_its_model_remembers(tmp_path, capsys):
    for index in range(12):
        put(tmp_path / "own" / "ab"[index % 2] / f"{index}.png", np.full((8, 8), 20 * index))
    (tmp_path / "own" / "notes.txt").write_text("none")
    words = ["train", "--data", str(tmp_path / "own"), "--out", str(tmp_path / "own" / "run"), *TINY, "--steps", "1"]
    assert main(words) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "12 grey pictures of 8 x 8, 0.0 MB in memory; 2 classes (a, b); levels 0 to 220; left out: " in first
    assert first.endswith("left out: files of other kinds: 1 (as notes.txt)")
    config = json.loads((tmp_path / "own" / "run" / "config.json").read_text())
    assert config["data"]["classes"] == ["a", "b"]
    assert config["provenance"]["read"] == {
        "source": str(tmp_path / "own"),
        "held_out": 0.05,
        "seed": 0,
        "pictures": 12,
        "classes": 2,
        "levels": "levels 0 to 220",
        "left_out": {"files of other kinds": {"number": 1, "example": "notes.txt"}},
    }
    # Its output lies in the data, and is not read: the same command goes on, and another run reads the same.
    assert main(words) == 0
    assert main([*words[:4], str(tmp_path / "own" / "other"), *words[5:]]) == 0
    assert "12 grey pictures of 8 x 8" in capsys.readouterr().out


def test_a_single_picture_is_written_as_it_is_and_read_again(tmp_path):
    image = np.arange(6 * 5, dtype=np.uint8).reshape(1, 6, 5, 1)
    image_files.write(tmp_path / "one.png", image)
    np.testing.assert_array_equal(read_pictures(tmp_path)[0, 0].numpy(), image[0, ..., 0])


def test_what_cannot_be_read_of_a_folder_is_counted_and_the_way_out_named(tmp_path):
    for k in range(3):
        Image.new("L", (8, 8), k).save(tmp_path / f"{k}.png")
    (tmp_path / "bad.png").symlink_to("gone.png")
    way = '; "proxflow prepare" leaves such files out and counts them'
    with pytest.raises(
        DataError, match=f"bad.png: cannot be read .a link to gone.png, which does not exist.*picture{way}"
    ):
        read_pictures(tmp_path)
    (tmp_path / "more.png").write_bytes(b"x")
    with pytest.raises(DataError, match=f"of 5 pictures 2 cannot be read.{way}"):
        read_pictures(tmp_path)
    (tmp_path / "bad.png").unlink()
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "more.png").write_bytes(whole[:45] + bytes(20))
    with pytest.raises(DataError, match=f"more.png: cannot be read.*{way}"):
        read_pictures(tmp_path)
