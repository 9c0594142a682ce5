"""Binary images and images in bins: what is drawn, what is bounded, and the commands."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from scipy import stats
from support import first_images

import proxflow
from proxflow import ArgumentError, data
from proxflow.beliefs import Binned
from proxflow.cli import main
from proxflow.data import load
from proxflow.data.augment import Augmentation, binarised
from proxflow.data.image_files import write_png
from proxflow.data.kinds import image
from proxflow.data.kinds.image import Binary, Image, drawn_once
from proxflow.random import SampleStreams

DIGIT = load("mnist", "test").images[0, 0].numpy()
SMALL = "unet:channels=8,blocks=1,attention=()"


def test_a_pixel_is_white_as_often_as_it_is_bright():
    levels = torch.arange(256, dtype=torch.uint8)
    x = levels.repeat(4000, 1)[:, None]
    drawn = binarised(x, 0, range(len(x)))
    assert set(drawn.unique().tolist()) == {0, 255}
    share, expected = (drawn == 255).double().mean((0, 1)), levels.double() / 255
    z = (share - expected) / (expected * (1 - expected) / len(x)).sqrt().clamp_min(1e-9)
    assert share[0] == 0
    assert share[-1] == 1  # a white pixel is always white
    assert float(z.square().sum()) < stats.chi2(254).ppf(1 - 1e-4)


def test_draws_depend_on_seed_and_place_alone():
    x = torch.randint(256, (7, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    change = Augmentation.of("binarise")
    whole = change(x, 5, range(7))
    assert torch.equal(whole, torch.cat([change(x[:3], 5, range(3)), change(x[3:], 5, range(3, 7))]))
    assert not torch.equal(whole, change(x, 6, range(7)))
    assert torch.equal(drawn_once(x)[:4], drawn_once(x[:4]))


def test_zeros_and_ones_are_black_and_white_and_near_black_is_refused(tmp_path):
    ones = np.random.default_rng(0).integers(0, 2, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "ones.npz", images=ones)
    for kind in (Binary, Image):
        found = kind.read(str(tmp_path / "ones.npz"), held_out=0.0)
        assert torch.equal(found.train.x, 255 * torch.from_numpy(ones).permute(0, 3, 1, 2))
        assert "levels 0 and 1 as 0 and 255" in found.notes[0]
    np.savez(tmp_path / "dark.npz", images=3 * ones)
    with pytest.raises(ArgumentError, match="brightest pixel has the level 3 of 255"):
        Binary.read(str(tmp_path / "dark.npz"))
    np.savez(tmp_path / "colour.npz", images=255 * ones.repeat(3, 3))
    with pytest.raises(ArgumentError, match="in colour: leave --kind out"):
        Binary.read(str(tmp_path / "colour.npz"))


def test_training_images_keep_their_levels_and_held_out_ones_are_drawn(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", images=grey)
    found = Binary.read(str(tmp_path / "grey.npz"), held_out=0.25)
    assert set(found.held_out.x.unique().tolist()) == {0, 255}
    assert len(found.train.x.unique()) > 100
    assert len(found.held_out) == 10
    kind = found.kind
    assert kind.encode(found.held_out.x).dtype == torch.int64
    assert torch.equal(kind.decode(kind.encode(found.held_out.x)), found.held_out.x)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(8):
        Picture.fromarray(grey[k, ..., 0]).save(folder / f"{k}.png")
    with pytest.raises(ArgumentError, match="binary images are drawn from images in memory"):
        Binary.read(str(folder), workers=1)


@pytest.mark.parametrize("flow", [None, "masked", "gpfn-linear", "gpfn-fisher-rao"])
def test_models_of_binary_images_learn_what_is_always_black(flow):
    """Of the right half nothing is ever white: a few steps teach it, and the bound shows it."""
    x = torch.full((64, 1, 8, 8), 128, dtype=torch.uint8)
    x[..., 4:] = 0
    model = proxflow.build(Binary((1, 8, 8)), flow=flow, network=SMALL, seed=0)
    before = model.bound(drawn_once(x), draws=4)
    trained = model.fit(x, steps=60, batch_size=32, learning_rate=5e-3, warmup_steps=1, ema=0.9, device="cpu")
    after = trained.bound(drawn_once(x), draws=4)
    entropy = 32 * math.log(2)
    assert entropy - 4 * after.standard_error < after.mean < before.mean
    drawn = trained.sample(16, nfe=8)
    assert drawn.dtype == torch.uint8
    assert set(drawn.unique().tolist()) <= {0, 255}
    assert float((drawn[..., :4] == 255).double().mean()) > 2 * float((drawn[..., 4:] == 255).double().mean())


def test_a_bound_is_each_examples_own_and_refused_where_there_is_none():
    model = proxflow.build(Binary((1, 8, 8)), network=SMALL, seed=0)
    x = torch.randint(2, (9, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8) * 255
    torch.testing.assert_close(model.bound(x, batch_size=4).values, model.bound(x, batch_size=9).values)
    assert model.bound(x).dimensions == 64
    assert proxflow.build(Image((1, 8, 8)), network=SMALL).has_bound is False
    with pytest.raises(ArgumentError, match="gpfn-w2 has no bound of the probability of images; log_prob has"):
        proxflow.build(Image((1, 8, 8)), network=SMALL).bound(x)
    with pytest.raises(ArgumentError, match="bfn has no bound of the probability of"):
        proxflow.build((3,), flow="bfn").bound(torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
def test_images_come_in_256_bins_of_one_byte_each(shape):
    model = proxflow.build(Image(shape), flow="bfn-discretised", network=SMALL, seed=0)
    assert model.flow.bins == 256
    levels = torch.arange(256, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    centres = Binned(torch.zeros(1, 256)).centres
    indices = Binned(torch.zeros(1, 256)).indices_of(model.data.encode(levels).flatten())
    assert indices.tolist() == list(range(256))
    assert model.data.decode(centres.reshape(-1, 1, 1, 1)).flatten().tolist() == list(range(256))
    x = torch.randint(256, (3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    encoded = 2 * x.float() / 255 - 1
    with torch.no_grad():
        expected = proxflow.bayesian_bound(model.predictor, model.flow, encoded, SampleStreams(0, torch.arange(3)))
    torch.testing.assert_close(model.bound(x).values, expected)
    assert model.sample(2, nfe=3).shape == (2, *shape)


def test_the_mean_of_gaussian_bins_needs_no_logits_and_is_theirs():
    mean = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64)[None].requires_grad_()
    std = torch.logspace(-3, 1, 12, dtype=torch.float64)[None].requires_grad_()
    belief = Binned.of_gaussian(mean, std, 20)
    quick = belief.mean
    assert "logits" not in belief.__dict__
    edges = np.concatenate([[-np.inf], np.linspace(-1, 1, 21)[1:-1], [np.inf]])
    mass = np.diff(stats.norm.cdf(edges, mean.detach().numpy()[0, :, None], std.detach().numpy()[0, :, None]))
    np.testing.assert_allclose(quick.detach()[0], mass @ (np.arange(20) * 0.1 - 0.95), atol=1e-12)
    slow = (belief.probs * belief.centres).sum(-1)
    for got, expected in zip(*(torch.autograd.grad(m.sum(), [mean, std]) for m in (quick, slow)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
    half = belief.map(lambda a: a[:, :6])  # as any belief
    torch.testing.assert_close(half.mean, quick[:, :6])


@pytest.fixture(scope="module")
def few():
    """Makes digits the first few of them, for what reads them by name: all would be scored, and nothing asks for that."""
    first = first_images(300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", first)
        patch.setattr(image, "load", first)
        yield


@pytest.fixture(scope="module")
def model(few, tmp_path_factory):
    """A model of binary digits, trained by the command for two steps."""
    out = tmp_path_factory.mktemp("binary") / "m"
    words = ["--kind", "binary", "--network", SMALL, "--steps", "2", "--batch-size", "8", "--device", "cpu"]
    assert main(["train", "--out", str(out), *words, "--grid", "4"]) == 0
    return out


@pytest.fixture
def digit(tmp_path):
    write_png(tmp_path / "digit.png", DIGIT[..., None])
    return tmp_path / "digit.png"


def test_the_bound_stands_beside_the_model(run, model, tmp_path):
    held = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert held["data"]["kind"] == "binary"
    assert held["provenance"]["bound"]["nats"] > 300
    status, said, err = run("evaluate", model, "--n", 40, "--steps", 2, "--out", tmp_path / "e.json")
    assert status == 0, err
    assert "test images of mnist, binarised" in said
    assert f"likelihood of 40 test images under {model}: at most" in said
    assert "nats an image" in said
    record = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))["bounds"][str(model)]
    assert record["bits_per_dimension"] == pytest.approx(record["nats"] / (784 * math.log(2)))
    assert record["examples"] == 40


def test_half_a_binary_digit_is_kept(run, model, digit, tmp_path):
    out = tmp_path / "r"
    status, _, err = run(
        "restore", digit, "--model", model, "--box", 0, 14, 28, 14, "--draws", 2, "--nfe", 3, "--out", out
    )
    assert status == 0, err
    drawn = np.load(out / "draws.npz")["images"][..., 0]
    assert (drawn[:, :14] == 255 * (DIGIT[:14] >= 128)).all()
    assert set(np.unique(drawn)) <= {0, 255}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("restore DIGIT --model MODEL --task deblur", "take --task inpaint, without --noise"),
        ("restore DIGIT --model MODEL --box 0 0 9 9 --noise 0.3", "take --task inpaint, without --noise"),
        ("evaluate MODEL mnist --n 40", "draws binary images, and mnist does not: evaluate them apart"),
        ("train --out OUT --kind binary --flow bfn", "flow of real numbers: take masked"),
        ("train --out OUT --flow bfn-discretised:bins=1", "at least 2 bins"),
        ("train --out OUT --data ROWS --flow bfn-discretised:bins=4", "bins are predicted of images"),
        ("train --out OUT --augment binary", "augment takes flip, crop, zoom, binarise"),
    ],
)
def test_what_does_not_fit_is_refused(run, model, digit, tmp_path, words, says):
    rows = tmp_path / "rows.csv"
    rows.write_text("1.5,2.5\n0.5,1.5\n" * 20, encoding="utf-8")
    places = {"DIGIT": digit, "MODEL": model, "OUT": tmp_path / "out", "ROWS": rows}
    status, _, err = run(*(places.get(word, word) for word in words.split()))
    assert status == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
