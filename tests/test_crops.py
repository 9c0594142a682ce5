"""Windows and parts of images that are kept larger than they are learnt."""

import json

import numpy as np
import pytest
import torch
from fleet import together
from PIL import Image as Pillow
from scipy import stats

import proxflow
from proxflow import GPFN, Examples, PointPredictor, TrainingConfig, fit
from proxflow.cli import main
from proxflow.data.augment import Augmentation
from proxflow.errors import ArgumentError
from proxflow.examples import LazyExamples
from proxflow.nn import UNet
from proxflow.runtime.processes import Processes

IMAGES = torch.randint(0, 256, (24, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CONFIG = TrainingConfig(steps=9, batch_size=10, checkpoint_every=4, warmup_steps=0, ema=0.5, augment="flip,crop:8")


def placed(number, height, width, scale=1):
    """Images whose two first channels say where a pixel is, in units of ``scale`` levels, and whose third is noise."""
    rows = scale * torch.arange(height)[:, None].expand(height, width)
    columns = scale * torch.arange(width).expand(height, width)
    noise = torch.randint(0, 256, (number, 1, height, width), generator=torch.Generator().manual_seed(1))
    where = torch.stack([rows, columns])[None].expand(number, -1, -1, -1)
    return torch.cat([where, noise], 1).to(torch.uint8)


# What is taken --------------------------------------------------------------------------------------------------------


def test_each_crop_is_a_window_of_the_larger_image_and_all_are_as_likely():
    x = placed(3000, 13, 17)
    found = Augmentation.of("crop:8")(x, 5, range(3000))
    assert found.shape == (3000, 3, 8, 8)
    top, left = found[:, 0, 0, 0].tolist(), found[:, 1, 0, 0].tolist()
    for image, window, t, a in zip(x, found, top, left, strict=True):
        assert torch.equal(window, image[:, t : t + 8, a : a + 8])
    counts = np.zeros((6, 10))
    np.add.at(counts, (top, left), 1)
    assert counts.min() > 0
    assert stats.chisquare(counts.flatten()).pvalue > 1e-3


def test_each_zoom_is_a_part_of_the_larger_image_scaled_as_pillow_does():
    x = placed(300, 96, 96, scale=2)
    found = Augmentation.of("zoom:64")(x, 5, range(300))
    assert found.shape == (300, 3, 64, 64)
    inside = np.arange(12, 52)
    places = []
    for image, part in zip(x, found, strict=True):
        sides = []
        for line in (part[0, :, 32], part[1, 32, :]):  # 2 · (first + (k + ½) side/64 − ½) for pixel k
            slope, level = np.polyfit(inside, line[inside].double().numpy() / 2, 1)
            sides.append((round(level + 0.5 - slope / 2), round(64 * slope)))
        (top, high), (left, wide) = sides
        assert min(top, left) >= 0
        assert max(top + high, left + wide) <= 96
        assert 0.49 < high * wide / 96**2 <= 1
        assert 0.74 < wide / high < 1.35
        places.append((top, high, left, wide))
        cut = Pillow.fromarray(image[2].numpy()).crop((left, top, left + wide, top + high))
        wanted = np.asarray(cut.resize((64, 64), Pillow.Resampling.BILINEAR)).astype(int)
        assert abs(part[2].numpy().astype(int) - wanted).max() <= 1
    for k in (0, 2):
        first, side = np.array(places)[:, k], np.array(places)[:, k + 1]
        free = side <= 84
        assert stats.kstest((first[free] + 0.5) / (97 - side[free]), "uniform").pvalue > 1e-3
    area = np.array([high * wide for _, high, _, wide in places]) / 96**2
    assert 0.70 < area.mean() < 0.78  # from a half to all as likely, a little less where a side would be too long


def test_what_is_not_trained_on_is_the_middle_or_the_whole():
    x = placed(4, 13, 18)
    middle = Augmentation.of("crop:8").whole(x)
    assert torch.equal(middle, x[:, :, 2:10, 5:13])
    assert Augmentation.of("crop:8").whole(middle) is middle
    square = placed(3, 96, 96)
    scaled = Augmentation.of("flip,zoom:64").whole(square)
    for image, one in zip(square, scaled, strict=True):
        wanted = Pillow.fromarray(image[2].numpy()).resize((64, 64), Pillow.Resampling.BILINEAR)
        assert abs(one[2].numpy().astype(int) - np.asarray(wanted).astype(int)).max() <= 1
    assert Augmentation.of("flip,crop").whole(x) is x


@pytest.mark.parametrize("words", ["crop:8", "zoom:8", "flip,crop:8,zoom", "crop,zoom:8", "crop:8,binarise"])
def test_it_depends_on_seed_and_place_alone(words):
    x, change = placed(60, 12, 12, 20), Augmentation.of(words)
    whole = change(x, 1, range(60))
    assert whole.shape == (60, *change.shape((3, 12, 12))) == (60, 3, 8, 8)
    assert torch.equal(torch.cat([change(x[a:z], 1, range(a, z)) for a, z in ((0, 7), (7, 8), (8, 60))]), whole)
    assert not torch.equal(change(x, 2, range(60)), whole)


@pytest.mark.parametrize(
    ("words", "shape", "said"),
    [
        ("crop:x", (12, 12), r"expected a side of 1 to 4096 pixels, as crop:64, got 'crop:x'"),
        ("zoom:0", (12, 12), r"as zoom:64, got 'zoom:0'"),
        ("flip:8", (12, 12), r"augment takes flip, crop, zoom, binarise, .* got 'flip:8'"),
        ("crop:8,zoom:6", (12, 12), r"one of crop:8 and zoom:6 says of which side"),
        ("zoom:8,binarise", (12, 12), r"zoom:8 scales pixels, and black and white .* take crop:8"),
        ("crop:13", (12, 20), r"crop:13 takes squares of 13 x 13 of larger images, and these are 12 x 20: keep"),
        ("crop:12", (12, 12), r"of larger images, and these are 12 x 12"),
        ("zoom:8", (12, 13), r"zoom:8 is for square images, and these are 12 x 13: .*take crop:8"),
    ],
)
def test_what_does_not_fit_is_refused_before_work_begins(words, shape, said):
    x = torch.zeros(10, 1, *shape, dtype=torch.uint8)
    with pytest.raises(ArgumentError, match=said):
        fit(untrained(), GPFN(), x, TrainingConfig(steps=1, batch_size=2, augment=words))


def test_held_out_images_that_are_too_small_are_refused():
    with pytest.raises(ArgumentError, match="these are 7 x 7"):
        fit(untrained(), GPFN(), IMAGES, CONFIG, held_out=IMAGES[..., :7, :7])


# Training -------------------------------------------------------------------------------------------------------------


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index]


class Sees(GPFN):
    """Keeps what the loss is given."""

    def loss(self, predict, x, generator, t=None, **told):
        self.__dict__.setdefault("seen", []).append(x)
        return super().loss(predict, x, generator, t, **told)


def untrained():
    torch.manual_seed(0)
    return PointPredictor(UNet((1, 8, 8), channels=8, multipliers=(1,), blocks=1), GPFN())


def trained(data=IMAGES, folder=None, held_out=None, **changes):
    stop = changes.pop("stop", None)
    config = TrainingConfig(**{**vars(CONFIG), **changes})
    return fit(untrained(), GPFN(), data, config, folder=folder, held_out=held_out, on_checkpoint=stop)


def same(one, other):
    pairs = zip(one.predictor.state_dict().values(), other.predictor.state_dict().values(), strict=True)
    return one.losses == other.losses and all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def whole():
    return {words: trained(augment=words) for words in ("flip,crop:8", "zoom:8")}


@pytest.mark.parametrize(("workers", "words"), [(0, "flip,crop:8"), (1, "zoom:8"), (2, "flip,crop:8")])
def test_whoever_reads_it_is_the_training_from_memory(whole, workers, words):
    lazy = LazyExamples(Pictures())
    assert same(trained(lazy, workers=workers, augment=words), whole[words])


def test_the_loss_sees_windows_of_the_images_of_the_step():
    flow = Sees()
    fit(untrained(), flow, Examples(IMAGES), TrainingConfig(**{**vars(CONFIG), "steps": 2, "augment": "crop:8"}))
    assert [x.shape for x in flow.seen] == [(10, 1, 8, 8)] * 2
    windows = IMAGES.unfold(2, 8, 1).unfold(3, 8, 1).reshape(-1, 64)
    known = set(map(tuple, windows.tolist()))
    for x in flow.seen:
        stored = ((x + 1) * 127.5).round().long().flatten(1)
        assert all(tuple(row) in known for row in stored.tolist())


class Stopped(Exception):  # noqa: N818
    pass


def stop_at(step):
    def stop(_, done):
        if done == step:
            raise Stopped

    return stop


@pytest.mark.parametrize("words", ["flip,crop:8", "zoom:8"])
def test_stopped_it_goes_on_bit_for_bit(tmp_path, whole, words):
    for data, stop, workers in ((IMAGES, 3, None), (LazyExamples(Pictures()), 6, 1)):
        (tmp_path / str(stop)).mkdir()
        told = {"augment": words, "checkpoint_every": 1, "workers": workers}
        with pytest.raises(Stopped):
            trained(data, tmp_path / str(stop), stop=stop_at(stop), **told)
        assert same(trained(data, tmp_path / str(stop), augment=words, checkpoint_every=1), whole[words])


def test_a_run_of_other_squares_does_not_go_on(tmp_path):
    trained(folder=tmp_path, steps=4)
    with pytest.raises(proxflow.errors.CheckpointError, match="trained with augment = flip,crop:8, not flip,crop:7"):
        trained(folder=tmp_path, augment="flip,crop:7")


def test_held_out_images_are_measured_as_their_middle(tmp_path):
    found = []
    for k, held_out in enumerate((IMAGES[:6], IMAGES[:6, :, 2:10, 2:10], IMAGES[:6, :, :8, :8])):
        trained(folder=tmp_path / str(k), held_out=held_out.contiguous())
        log = [json.loads(line) for line in (tmp_path / str(k) / "log.jsonl").read_text().splitlines()]
        found.append([entry["held_out_loss"] for entry in log if "held_out_loss" in entry])
    assert found[0] == found[1] != found[2]


def rough(parts):
    torch.manual_seed(Processes.current().rank)
    result = fit(untrained().double(), GPFN(), IMAGES, TrainingConfig(**{**vars(CONFIG), "accumulate": parts}))
    return {name: tensor.numpy() for name, tensor in result.predictor.state_dict().items()}


def test_processes_and_parts_of_a_batch_take_the_same_windows():
    alone = rough(1)
    for found in (rough(3), *together(2, rough, 1)):
        for name, tensor in alone.items():
            np.testing.assert_allclose(found[name], tensor, rtol=1e-5, atol=1e-7)


def test_a_model_in_python_learns_squares_of_its_own_shape():
    model = proxflow.build((1, 8, 8), network="unet:channels=8,multipliers=1")
    settings = {"steps": 1, "batch_size": 4}
    made = model.fit(IMAGES, augment="crop:8", **settings)
    assert made.sample(2, nfe=1).shape == (2, 1, 8, 8)
    assert made.provenance["training"]["augment"] == "crop:8"
    with pytest.raises(ArgumentError, match=r"have the shape \(1, 8, 8\), these \(1, 12, 12\)"):
        model.fit(IMAGES, **settings)


# The commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for k in range(40):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 16), dtype=np.uint8)
        Pillow.fromarray(pixels).save(folder / f"{k:02d}.png")
    return folder


WORDS = ["--network", "unet:channels=8,multipliers=1", "--steps", 2, "--batch-size", 4, "--held-out", 0.5]


def command(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("words", ["crop:8", "zoom:8"])
def test_from_a_folder_of_pictures_to_scores(pictures, tmp_path, capsys, words):
    out = tmp_path / "run"
    train = ["train", "--data", pictures, "--size", 12, "--augment", words, "--out", out, *WORDS]
    assert command(*train) == 0
    assert "20 images of 12 x 12, parts of 8 x 8, 2 steps" in capsys.readouterr().out
    held = json.loads((out / "config.json").read_text())
    assert held["data"]["shape"] == [1, 8, 8]
    assert held["provenance"]["training"]["augment"] == words
    assert held["provenance"]["read"]["size"] == 12
    assert command(*train) == 0
    assert "trained for all of its 2 steps" in capsys.readouterr().out
    assert command(*train[: -len(WORDS)], *WORDS, "--augment", "crop:7") == 2
    capsys.readouterr()
    assert command("evaluate", out, "--n", 20, "--steps", 1, "--extractor", "pixels", "--out", tmp_path / "a.json") == 0
    assert "brought to 8 x 8" in capsys.readouterr().out
    proxflow.load(out)


def test_a_prepared_set_is_kept_larger_too(pictures, tmp_path, capsys):
    assert command("prepare", pictures, "--size", 12, "--out", tmp_path / "set", "--workers", 0) == 0
    for k, workers in enumerate(([], ["--workers", 0])):
        train = ["train", "--data", tmp_path / "set", "--augment", "crop:8", *WORDS, *workers, "--grid", 0]
        assert command(*train, "--out", tmp_path / f"run{k}") == 0
    one, other = (proxflow.load(tmp_path / f"run{k}").predictor.state_dict() for k in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert command("train", "--data", tmp_path / "set", "--augment", "crop:13", *WORDS, "--out", tmp_path / "no") == 2
    assert "takes squares of 13 x 13 of larger images, and these are 12 x 12" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_binary_images_are_cut_and_not_scaled(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=IMAGES.repeat(2, 1, 1, 1).numpy()[:, 0])
    train = ["train", "--data", tmp_path / "a.npz", "--kind", "binary", *WORDS, "--grid", 0]
    assert command(*train, "--augment", "crop:8", "--out", tmp_path / "run") == 0
    assert proxflow.load(tmp_path / "run").shape == (1, 8, 8)
    assert command(*train, "--augment", "zoom:8", "--out", tmp_path / "other") == 2
    assert "black and white ones cannot be scaled" in capsys.readouterr().err


def test_a_word_and_the_word_with_a_side_are_two_things():
    with pytest.raises(ArgumentError, match="crop and crop:16 are two things"):
        Augmentation.of("crop:16,crop")
