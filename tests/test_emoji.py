"""The embedded emoji: complete, labelled, and split so that variants of one stay on one side."""

import lzma

import pytest
import torch

from proxflow import data
from proxflow.data.emoji import _FILES, CLASSES, code_points, load_emoji
from proxflow.data.kinds.image import Image
from proxflow.errors import DataError

PLAIN = {"1F468", "1F469", "1F9D1"}


def plain(codes):
    """A sequence without tones and genders, in any order."""
    kept = (code for code in codes.split("-") if code not in ("200D", "2640", "2642"))
    kept = ["1F9D1" if code in PLAIN else code for code in kept if not 0x1F3FB <= int(code, 16) <= 0x1F3FF]
    return tuple(sorted(kept)) or codes


def test_the_emoji_are_complete():
    train, test = (data.load("emoji", split) for split in ("train", "test"))
    assert (len(train.images), len(test.images)) == (3547, 379)
    assert train.images.shape[1:] == (3, 32, 32)
    both = torch.cat([train.images, test.images])
    assert len(torch.unique(both.flatten(1), dim=0)) == 3916
    assert both.amin() == 0
    assert both.amax() == 255
    assert both[:, :, 0, 0].float().mean() > 200  # on white
    labels = torch.cat([train.labels, test.labels]).bincount().tolist()
    assert labels == [166, 2275, 152, 133, 218, 85, 261, 277, 359]
    assert test.labels.bincount(minlength=9).min() >= 8


def test_their_groups_are_unicodes():
    groups = {}
    for split in ("train", "test"):
        labels = load_emoji(split).labels.tolist()
        groups |= dict(zip(code_points(split), (CLASSES[label] for label in labels), strict=True))
    wanted = {
        "1F600": "Smileys & Emotion",
        "1F44B-1F3FD": "People & Body",
        "1F468-200D-1F52C": "People & Body",
        "1F40D": "Animals & Nature",
        "1F355": "Food & Drink",
        "1F681": "Travel & Places",
        "1F3B3": "Activities",
        "1F511": "Objects",
        "267B": "Symbols",
        "1F1EF-1F1F5": "Flags",
    }
    assert {code: groups[code] for code in wanted} == wanted


def test_variants_and_what_looks_the_same_stay_on_one_side():
    sides = [{plain(codes) for codes in code_points(split)} for split in ("train", "test")]
    looks = [{image.numpy().tobytes() for image in load_emoji(split).images} for split in ("train", "test")]
    assert not looks[0] & looks[1]
    assert len(sides[0] & sides[1]) <= 3  # what looks the same has several names
    toned = [sum("1F3F" in codes for codes in code_points(split)) for split in ("train", "test")]
    assert min(toned) > 50


def test_training_reads_them_with_their_classes():
    loaded = Image.read("emoji")
    assert loaded.kind == Image((3, 32, 32), CLASSES)
    assert len(loaded.train) == 3547
    assert torch.equal(loaded.held_out.condition, load_emoji("test").labels)
    assert "colour pictures of 32 x 32" in loaded.notes[0]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="the emoji cannot be read"):
        load_emoji("train", tmp_path)
    (tmp_path / "emoji-32.xz").write_bytes(lzma.compress(bytes(32 * 32 * 3)))
    (tmp_path / "emoji.json").write_bytes((_FILES / "emoji.json").read_bytes())
    with pytest.raises(DataError, match=r"emoji-32\.xz: its content has the sha256 [0-9a-f]{64}, expected 4669"):
        load_emoji("train", tmp_path)
