"""The command line: what it writes, and what it says to wrong input."""

import hashlib
import json
import math
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from support import needs_fashion_mnist

import proxflow
from proxflow import models, names
from proxflow.data import ImageData, to_bytes
from proxflow.data import image_files as imagefiles
from proxflow.nn import UNet
from proxflow.studies import presets, scoreboard, trials
from proxflow.training import fit as training_fit

TINY = "unet:channels=8,multipliers=1,patch=4"
TINY_WORDS = ("--network", TINY, "--device", "cpu")


def save_model(folder, shape=(1, 28, 28), flow="gpfn-w2"):
    torch.manual_seed(0)
    model = models.build(shape, flow=flow, network=TINY if len(shape) == 3 else "mlp:width=16,depth=2")
    with torch.no_grad():
        for parameter in model.predictor.parameters():  # a new network's last layer is zero: all images would be grey
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    models.save(folder, model)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def refused(result, *expected, status=2):
    """Asserts one line that says what was wrong, and the exit status."""
    found, _, err = result
    assert found == status, err
    assert err.startswith("proxflow: error: ")
    assert err.count("\n") == 1
    for text in expected:
        assert text in err
    return True


@pytest.fixture
def no_work(monkeypatch):
    """Makes sampling and training fail, so that a refusal must have come before."""

    def fail(*_, **__):
        raise AssertionError("work was started")

    monkeypatch.setattr(models.model, "sample", fail)
    monkeypatch.setattr(training_fit, "fit", fail)
    monkeypatch.setattr(trials, "fit", fail)


def noise(count, shape=(28, 28), channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape, channels), dtype=np.uint8)


def pretend_fashion_mnist(folder, monkeypatch):
    """Makes the images in a folder pass for those of Fashion-MNIST, by their checksums."""
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        checksum = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(proxflow.data.fashion_mnist.SHA256, name, checksum)


def write_idx(folder, train=80, test=60):
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("t10k", test)):
        header = bytes((0, 0, 8, 3)) + np.array([count, 28, 28], ">u4").tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + noise(count, seed=count).tobytes())
    return folder


# help -----------------------------------------------------------------------------------------------------------------


def test_help_names_every_option_and_does_not_import_torch():
    script = """
import sys
from proxflow.cli import main
for words in [], ["sample"], ["prepare"], ["train"], ["reflow"], ["times"], ["evaluate"], ["reproduce"], ["list"]:
    try:
        main([*words, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
    print("=====")
main(["--version"])
heavy = {"torch", "numpy", "matplotlib", "PIL", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    top, sample, prepare, train, reflow, times, evaluate, reproduce, listing, version = done.stdout.split("=====\n")
    commands = ("sample", "prepare", "train", "reflow", "times", "evaluate", "reproduce", "list")
    assert all(name in top for name in (*commands, "--version", "Exit status"))
    assert all(word in sample for word in ("--n", "--steps", "--sampler", "--seed", "--out", "multistep2", ".npz"))
    assert all(word in train for word in ("--data", "--flow", "--learning-rate", "--batch-size", "gpfn-w2", "resumes"))
    assert all(
        f"--{word} WORD" in train for word in ("flow", "divergence", "schedule", "coupling", "network", "predictor")
    )
    assert all(word in prepare for word in ("--size", "--out", "--workers", "resumes"))
    assert all(word in evaluate for word in ("--images", "Fréchet", "1000; of images,"))
    assert all(word in reproduce for word in ("quick", "standard", "paper", "2 processor", "resumes", "geometry"))
    assert all(word in reflow for word in ("--rounds", "--pairs", "--pair-steps", "--learning-rate", "resumes"))
    assert all(word in times for word in ("--steps", "--sampler", "--out", "needs no data"))
    for page in (sample, prepare, train, reflow, times, evaluate, reproduce, listing):
        assert "For example:\n    proxflow " in page
        assert "None" not in page
    assert version == f"proxflow {proxflow.__version__}\n"


def test_words_that_do_not_parse_are_named(run):
    for words, named in (
        (["draw"], "draw"),
        ([], "Missing subcommand"),
        (["sample", "--sampler", "fast"], "multistep2"),
        (["sample", "--sampler", "multistep"], "or multistep2?"),
        (["sample", "--sampler", "marginal:kappa=2"], "kappa"),
        (["sample", "--sampler", "marginal:colour=2"], "its settings are kappa"),
        (["sample", "--steps", "many"], "--steps"),
        (["sample", "--colour", "red"], "--colour"),
        (["sample", "--device", "tpu"], "cuda"),
        (["train"], "--out"),
        (["train", "--out", "x", "--flow", "gan"], "gpfn-w2"),
        (["train", "--out", "x", "--divergence", "kll"], "did you mean kl"),
        (["train", "--out", "x", "--divergence", "kll"], "entry point of the group proxflow.divergences"),
        (["train", "--out", "x", "--schedule", "linear:final=2"], "final"),
        (["train", "--out", "x", "--flow", "bfn", "--divergence", "kl"], "the flow bfn has no divergence"),
        (["train", "--out", "x", "--flow", "bfn:sigma1=0"], "sigma"),
        (["train", "--out", "x", "--kind", "sound"], "no kind is called 'sound'"),
        (["train", "--out", "x", "--network", "unett"], "did you mean unet"),
        (["train", "--out", "x", "--predictor", "pint"], "did you mean point"),
        (["train", "--out", "x", "--parameterisation", "w"], "epsilon"),
        (["list", "colours"], "divergences"),
        (["reproduce", "cifar"], "mnist"),
        (["reproduce", "--preset", "huge"], "standard"),
        (["sample", "--n", "2.5"], "--n: expected a whole number, got '2.5'"),
        (["sample", "--steps", "2.5"], "--steps: expected a whole number, got '2.5'"),
        (["sample", "--guidance", "strong"], "--guidance: expected a number, got 'strong'"),
        (["train", "--out", "x", "--numbers", "log"], "--numbers: expected quantiles, standard, got 'log'"),
        (["train", "--out", "x", "--sampler", "x"], "train takes no option --sampler; see proxflow train --help"),
        (["train", "--out", "x", "--stesp", "3"], "train takes no option --stesp; did you mean --steps?"),
        (["sample", "mnist", "emoji"], "sample takes no further word emoji"),
        (["train"], "train needs --out PATH"),
    ):
        status, _, err = run(*words)
        assert status == 2, words
        assert named in err, words
        assert err.startswith("proxflow: error: "), words
        assert err.count("\n") == 1, words


# list -----------------------------------------------------------------------------------------------------------------


def test_list_names_everything_once_with_a_line(run):
    status, whole, err = run("list")
    assert (status, err) == (0, "")
    for group in ("flows", "divergences", "schedules", "couplings", "networks", "predictors", "samplers", "kinds"):
        status, out, _ = run("list", group)
        assert status == 0
        assert out in whole
        told = dict(line.split(maxsplit=1) for line in out.splitlines())  # a name and its line in every row
        assert list(told) == list(names.known(group))
        assert all(told.values())
    assert [line.split()[0] for line in run("list", "models")[1].splitlines()] == models.shipped_models()
    assert [line.split()[0] for line in run("list", "data")[1].splitlines()] == [*proxflow.data.NAMED, "bible"]


def test_list_shows_what_packages_add_also_what_is_broken(run, monkeypatch):
    added = {
        "mine": names.Name("collections:OrderedDict", package="their-package"),
        "broken": names.Name("nonesuch.module:Thing", package="other-package"),
    }
    monkeypatch.setattr(names, "added", lambda group: added if group == "samplers" else {})
    status, out, err = run("list", "samplers")
    assert (status, err) == (0, "")
    told = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert told["mine"].startswith("Dictionary that remembers insertion order")
    assert "their-package" in told["mine"]
    assert "other-package" in told["broken"]
    assert "cannot be imported" in told["broken"]
    assert "multistep2" in told


def test_list_needs_no_torch():
    script = """
import sys
from proxflow.cli import main
assert main(["list"]) == 0
assert not {"torch", "numpy", "rich"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# sample ---------------------------------------------------------------------------------------------------------------


def test_sample_writes_a_grid(run, model, tmp_path):
    status, out, err = run("sample", model, "--n", 7, "--steps", 2, "--out", tmp_path / "new" / "grid.png")
    assert (status, err) == (0, "")
    assert "grid.png" in out
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        assert picture.mode == "L"
        assert picture.size == (3 * 30 + 2, 3 * 30 + 2)


def test_few_evaluations_take_the_shipped_student(run, tmp_path, monkeypatch):
    asked, load = [], models.load
    monkeypatch.setattr(models, "load", lambda name, device: asked.append(name) or load(name, device))
    for steps in (1, 2, 3):
        assert run("sample", "--n", 1, "--steps", steps, "--device", "cpu", "--out", tmp_path / "x.npz")[0] == 0
    assert asked == ["mnist-few", "mnist-few", "mnist"]
    assert load("mnist-few", "cpu").provenance["method"] == "distribution-matching"
    asked.clear()
    for steps in (1, 3):
        given = ("--class", 7, "--guidance", 1.5, "--steps", steps, "--device", "cpu", "--out", tmp_path / "x.npz")
        assert run("sample", "--n", 2, *given)[::2] == (0, "")
        assert np.load(tmp_path / "x.npz")["labels"].tolist() == [7, 7]
    assert asked == ["mnist-classes-few", "mnist-classes"]


def test_a_student_of_one_evaluation_draws_with_one_and_says_where_more_are_asked_for(run, tmp_path):
    status, said, _ = run("sample", "mnist-few", "--n", 2, "--device", "cpu", "--out", tmp_path / "one.npz")
    assert status == 0
    assert "2 images, 1 network evaluation each" in said
    model = models.load("mnist-few")
    assert torch.equal(model.sample(2), model.sample(2, nfe=1))
    status, said, _ = run("sample", "mnist-few", "--n", 2, "--steps", 5, "--device", "cpu", "--out", tmp_path / "x.npz")
    assert "was taught to draw with one network evaluation, and draws worse with 5" in said


def test_the_grid_holds_the_images_in_order(run, model, tmp_path):
    run("sample", model, "--n", 5, "--steps", 1, "--out", tmp_path / "a.png")
    run("sample", model, "--n", 5, "--steps", 1, "--out", tmp_path / "a.npz")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
    images = np.load(tmp_path / "a.npz")["images"]
    assert (pixels[2:30, 32:60] == images[1, ..., 0]).all()
    assert (pixels[32:60, 2:30] == images[3, ..., 0]).all()


def test_sample_writes_its_file_again_in_the_folder_that_one_is_in(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the model of the package says of its data how many, and no place
    for _ in range(2):
        status, _, err = run("sample", "--n", 1, "--steps", 1, "--device", "cpu", "--out", "digit.png")
        assert (status, err) == (0, "")


def test_sample_writes_an_array(run, model, tmp_path):
    for name in ("few.npz", "few.NPZ"):
        assert run("sample", model, "--n", 5, "--steps", 2, "--out", tmp_path / name)[0] == 0
        with np.load(tmp_path / name) as arrays:
            assert list(arrays) == ["images"]
            assert arrays["images"].dtype == np.uint8
            assert arrays["images"].shape == (5, 28, 28, 1)


def test_sample_writes_a_folder_that_can_be_written_again(run, tmp_path):
    colour = save_model(tmp_path / "colour", (3, 8, 12))
    for _ in range(2):
        assert run("sample", colour, "--n", 5, "--steps", 2, "--out", tmp_path / "pictures")[0] == 0
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [f"{k:05d}.png" for k in range(5)]
    run("sample", colour, "--n", 5, "--steps", 2, "--out", tmp_path / "array.npz")
    assert (imagefiles.read(tmp_path / "pictures") == imagefiles.read(tmp_path / "array.npz")).all()
    with Image.open(tmp_path / "pictures" / names[0]) as picture:
        assert (picture.mode, picture.size) == ("RGB", (12, 8))
    fewer = run("sample", colour, "--n", 3, "--steps", 2, "--out", tmp_path / "pictures")
    assert refused(fewer, "00003.png", "empty")


def test_images_depend_on_the_seed_alone(run, model, tmp_path):
    def images(*words):
        assert (
            run("sample", model, "--steps", 3, "--sampler", "stochastic", "--out", tmp_path / "x.npz", *words)[0] == 0
        )
        return np.load(tmp_path / "x.npz")["images"]

    whole = images("--n", 40, "--seed", 5)
    assert whole.std() > 10
    assert len(np.unique(whole, axis=0)) == 40
    assert (images("--n", 40, "--seed", 5, "--batch-size", 16) == whole).all()
    assert (images("--n", 9, "--seed", 5) == whole[:9]).all()
    assert (images("--n", 9, "--seed", 6) != whole[:9]).any()


@pytest.mark.parametrize("flow", ["gpfn-w2", "bfn"])
@pytest.mark.parametrize("sampler", ["deterministic", "stochastic", "marginal", "multistep2"])
def test_steps_are_network_evaluations(run, tmp_path, monkeypatch, flow, sampler):
    folder, calls = save_model(tmp_path / "m", (1, 8, 8), flow), []
    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, *_, **__: calls.append(len(x)) or forward(self, x, *_, **__))
    for steps in (1, 2, 5):
        calls.clear()
        words = ("--n", 16, "--steps", steps, "--sampler", sampler, "--out", tmp_path / "x.npz")
        assert run("sample", folder, *words)[0] == 0
        assert calls == [16] * steps


def test_sample_refuses_before_it_works(run, model, tmp_path, no_work):
    file = tmp_path / "file"
    file.write_text("")
    for words, expected in (
        (["--n", 0], "--n must be at least 1, got 0"),
        (["--steps", 0], "at least 1, got 0"),
        (["--steps", -3], "at least 1, got -3"),
        (["--batch-size", 0], "--batch-size"),
        (["--seed", -1], "--seed"),
        (["--seed", 2**63], "--seed"),
        (["--out", tmp_path / "x.jpg"], ".npz"),
        (["--out", tmp_path / "samples.v2"], ".npz"),
        (["--out", file / "x.png"], "cannot write"),
        (["--out", file / "folder"], "cannot write"),
        (["--out", file], "cannot write"),
    ):
        assert refused(run("sample", model, *words), expected)
    (tmp_path / "folder.png").mkdir()
    assert refused(run("sample", model, "--out", tmp_path / "folder.png"), "is a folder")
    assert refused(run("sample", "nonesuch"), "'nonesuch'", "config.json")


def test_images_of_two_channels_fit_an_array_only(run, tmp_path):
    folder = save_model(tmp_path / "m", (2, 8, 8))
    assert refused(run("sample", folder, "--n", 2, "--out", tmp_path / "x.png"), "2", ".npz")
    assert run("sample", folder, "--n", 2, "--steps", 1, "--out", tmp_path / "x.npz")[0] == 0


def test_a_sampler_that_the_flow_cannot_use_is_refused(run, tmp_path):
    folder = save_model(tmp_path / "m", (1, 8, 8), "gpfn-fisher-rao")
    words = ("sample", folder, "--n", 2, "--steps", 2, "--out", tmp_path / "x.npz")
    assert refused(run(*words, "--sampler", "multistep2"), "Deterministic")
    assert run(*words)[0] == 0  # of its own accord it takes one that the flow can use


def test_damaged_models_are_refused(run, model, tmp_path, no_work):
    config = json.loads((model / "config.json").read_text())
    weights = (model / "model.safetensors").read_bytes()
    tensors = load_file(model / "model.safetensors")
    name = next(iter(tensors))

    def damaged(config_text=None, content=weights, expected=""):
        folder = tmp_path / "damaged"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config) if config_text is None else config_text)
        (folder / "model.safetensors").unlink(missing_ok=True)
        if content is not None:
            (folder / "model.safetensors").write_bytes(content)
        return refused(run("sample", folder, "--out", tmp_path / "x.png"), expected)

    def saved(values):
        save_file(values, tmp_path / "other.safetensors")
        return (tmp_path / "other.safetensors").read_bytes()

    assert damaged(content=None, expected="model.safetensors does not exist")
    assert damaged(content=weights[: len(weights) // 2], expected="not a whole safetensors file")
    assert damaged(content=weights[:5], expected="not a whole safetensors file")
    assert damaged(content=b"", expected="not a whole safetensors file")
    assert damaged(content=saved({**tensors, name: tensors[name] * math.nan}), expected="not finite")
    assert damaged(content=saved({**tensors, name: tensors[name][None]}), expected="another architecture")
    assert damaged(content=saved({k: v for k, v in tensors.items() if k != name}), expected=f"lacks '{name}'")
    assert damaged("{", expected="config.json is not readable as JSON")
    assert damaged("[]", expected="config.json")
    assert damaged(json.dumps({**config, "format": 99}), expected="format")
    assert damaged(
        json.dumps({**config, "data": {"kind": "image", "shape": [1, 28]}}), expected="(channels, height, width)"
    )
    assert damaged(json.dumps({**config, "flow": {"kind": "gan"}}), expected="gpfn-w2")
    assert damaged(json.dumps({**config, "network": {**config["network"], "colour": 1}}), expected="colour")
    assert damaged(json.dumps({**config, "network": {**config["network"], "channels": "8"}}), expected="channels")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused(run, model, no_work, tmp_path):
    for words in (
        ["sample", model],
        ["train", "--out", tmp_path / "t"],
        ["evaluate", model],
        ["reproduce", "--out", tmp_path / "r"],
    ):
        assert refused(run(*words, "--device", "cuda"), "no CUDA device", "--device cpu")


def test_a_graph_without_cuda_is_refused(run, model, no_work, tmp_path):
    for command in ("sample", "evaluate"):
        assert refused(run(command, model, "--graph", "--device", "cpu"), "--graph", "CUDA device", "leave it out")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("[enforce] DefaultCPUAllocator: no"), MemoryError()]
)
def test_out_of_memory_says_what_to_lower(run, model, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(models.model, "sample", fail)
    result = run("sample", model, "--batch-size", 64, "--out", tmp_path / "x.png")
    assert refused(result, "lower --batch-size, now 64", status=1)


def test_classes_are_named_behind_one_option(run, model, no_work):
    result = run("sample", model, "--class", 3, "--class", 7)
    assert refused(result, "--class is given twice", "--class 3 7")


def test_more_samples_than_memory_holds_are_refused(run, model, no_work):
    assert refused(run("sample", model, "--n", 10**13), "--n: 10,000,000,000,000 samples take", "draw fewer at a time")


def test_an_option_of_classes_without_any_is_refused(run, model, no_work):
    assert refused(run("sample", model, "--class", "--n", 2), "--class names no class")


def test_a_disk_that_is_full_is_no_traceback(run, model, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(models.model, "sample", fail)
    assert refused(run("sample", model, "--out", tmp_path / "x.png"), "cannot write", "No space left on device")


def test_an_interrupt_is_no_traceback(run, model, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(models.model, "sample", interrupt)
    status, _, err = run("sample", model, "--out", tmp_path / "x.png")
    assert status == 130
    assert err == "proxflow: interrupted; nothing was written\n"


def test_a_network_that_cannot_be_compiled_is_no_traceback(run, arrays, tmp_path, monkeypatch):
    from torch._inductor.exc import CppCompileError

    def fail(*_, **__):
        raise CppCompileError(["g++"], "no such instruction\n" * 100)

    monkeypatch.setattr(training_fit, "fit", fail)
    result = run("train", "--out", tmp_path / "m", "--data", arrays, "--compile", *TINY_WORDS)
    assert refused(result, "cannot be compiled here, leave out --compile", status=1)
    assert len(result[2]) < 400


def test_a_termination_is_no_traceback(run, arrays, tmp_path, monkeypatch):
    def terminate(*_, **__):
        raise SystemExit(143)

    monkeypatch.setattr(training_fit, "fit", terminate)
    status, _, err = run("train", "--out", tmp_path / "m", "--data", arrays, *TINY_WORDS)
    assert status == 143
    assert err == "proxflow: terminated; give the same command again to go on\n"


# train ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def arrays(tmp_path_factory):
    path = tmp_path_factory.mktemp("arrays") / "own.npz"
    imagefiles.write(path, noise(24, (8, 8), 3))
    return path


def test_train_then_sample(run, arrays, tmp_path):
    words = ("train", "--out", tmp_path / "m", "--data", arrays, "--steps", 60, "--batch-size", 8, *TINY_WORDS)
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert f"proxflow sample {tmp_path / 'm'}" in out
    provenance = json.loads((tmp_path / "m" / "config.json").read_text())["provenance"]
    assert provenance["steps"] == provenance["training"]["steps"] == 60
    assert len(provenance["losses"]) == 2
    assert not (tmp_path / "m" / "checkpoint.safetensors").exists()
    assert run("sample", tmp_path / "m", "--n", 3, "--steps", 1, "--out", tmp_path / "x.npz")[0] == 0
    assert imagefiles.read(tmp_path / "x.npz").shape == (3, 8, 8, 3)

    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    status, out, _ = run(*words)
    assert status == 0
    assert "trained for all of its 60 steps" in out
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before

    assert refused(run(*words, "--learning-rate", 1e-4), "none to do with learning_rate = 0.0001", "raise --steps")
    assert refused(run(*words, "--steps", 50), "model of 60 steps", "steps = 50")
    assert refused(run(*words, "--flow", "gpfn-kl"), "flow.divergence = w2, not kl")
    assert refused(run(*words, "--coupling", "ot"), "flow.coupling = None, not ot")
    assert refused(run(*words, "--network", "unet:channels=8"), "network.multipliers = [1], not [1, 2]")
    other = tmp_path / "other.npz"
    imagefiles.write(other, noise(24, (8, 8), 3, seed=1))
    assert refused(run(*words, "--data", other), "run on other data, or on these read otherwise")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


def test_training_goes_on_for_longer_with_another_rate_and_batch(run, arrays, tmp_path):
    common = ("train", "--data", arrays, *TINY_WORDS)
    assert run(*common, "--out", tmp_path / "m", "--steps", 6, "--batch-size", 4)[0] == 0
    longer = ("--steps", 9, "--batch-size", 8, "--learning-rate", 1e-4)
    status, out, err = run(*common, "--out", tmp_path / "m", *longer)
    assert (status, err) == (0, "")
    assert "goes on with steps = 9 (was 6), batch_size = 8 (was 4), learning_rate = 0.0001 (was 0.002)" in out
    provenance = json.loads((tmp_path / "m" / "config.json").read_text())["provenance"]
    assert [(s["step"], s["seen"], s["steps"], s["batch_size"]) for s in provenance["stages"]] == [
        (0, 0, 6, 4),
        (6, 24, 9, 8),
    ]
    assert [session["step"] for session in provenance["sessions"]] == [0, 6]
    assert {"torch", "threads", "processes"} <= provenance["sessions"][1].keys()
    assert "trained for all of its 9 steps" in run(*common, "--out", tmp_path / "m", *longer)[1]

    shutil.rmtree(tmp_path / "m" / "checkpoints")
    assert refused(
        run(*common, "--out", tmp_path / "m", *longer[2:], "--steps", 12), "without its last checkpoint", "--init"
    )


def test_fewer_steps_than_are_done_are_refused_before_it_is_said_to_go_on(run, arrays, tmp_path):
    common = ("train", "--data", arrays, *TINY_WORDS, "--batch-size", 4, "--out", tmp_path / "m")
    assert run(*common, "--steps", 6)[0] == 0
    (tmp_path / "m" / "config.json").unlink()  # as where it was stopped before the first model was written
    assert refused(
        run("sample", tmp_path / "m", "--out", tmp_path / "x.png"),
        "no model yet: let it go on with the same command",
    )
    held = (tmp_path / "m" / "run.json").read_bytes()
    status, out, err = run(*common, "--steps", 4)
    assert (status, out) == (2, "")
    assert "has done 6 steps already, and 4 are wanted: raise --steps" in err
    assert (tmp_path / "m" / "run.json").read_bytes() == held


def test_training_begins_with_given_weights(run, arrays, tmp_path):
    common = ("--data", arrays, "--batch-size", 4, "--device", "cpu")
    assert run("train", "--out", tmp_path / "a", *common, *TINY_WORDS, "--steps", 3, "--flow", "gpfn-kl")[0] == 0
    # Steps of no length keep the weights: the network, flow and predictor are those of the model, too.
    still = ("--steps", 2, "--learning-rate", 1e-30, "--weight-decay", 0)
    status, out, err = run("train", "--out", tmp_path / "b", *common, *still, "--init", tmp_path / "a")
    assert (status, err) == (0, "")
    assert f"from {tmp_path / 'a'}" in out
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["flow"]["divergence"]["kind"] == "kl"
    assert config["provenance"]["init"]["model"] == str(tmp_path / "a")
    assert config["provenance"]["init"]["weights"].startswith("sha256 ")

    words = ("train", "--out", tmp_path / "c", *common, "--steps", 2, "--init", tmp_path / "a")
    assert run(*words, "--flow", "gpfn-w2")[0] == 0
    assert json.loads((tmp_path / "c" / "config.json").read_text())["flow"]["divergence"]["kind"] == "w2"
    assert refused(run(*words[:2], tmp_path / "d", *words[3:], "--network", "unet:channels=16"), "leave --network out")
    assert refused(run(*words, "--teacher", tmp_path / "a"), "--init and --teacher")
    assert refused(
        run("train", "--out", tmp_path / "e", "--data", "mnist", "--init", tmp_path / "a"), "shape (3, 8, 8)"
    )


def test_a_folder_in_use_is_refused(run, arrays, tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from proxflow.runtime.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'training'): print('in', flush=True); time.sleep(60)"
    )
    (tmp_path / "m").mkdir()
    words = ("train", "--out", tmp_path / "m", "--data", arrays, "--steps", 2, "--batch-size", 4, *TINY_WORDS)
    with subprocess.Popen([sys.executable, "-c", script, tmp_path / "m"], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        assert refused(run(*words), f"is in use by training, process {other.pid} on")
        other.kill()
    assert run(*words)[0] == 0  # a lock that the killed process left behind is none
    assert not (tmp_path / "m" / ".lock").exists()


def test_a_student_learns_from_a_teacher(run, arrays, tmp_path):
    common = ("--data", arrays, "--steps", 3, "--batch-size", 4, "--device", "cpu")
    assert run("train", "--out", tmp_path / "t", *common, *TINY_WORDS)[0] == 0
    words = ("train", "--out", tmp_path / "s", "--teacher", tmp_path / "t", *common)
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert f"after {tmp_path / 't'}" in out
    teacher, student = (load_file(tmp_path / name / "model.safetensors") for name in "ts")
    assert teacher.keys() == student.keys()  # of the same network, without the critic
    assert any((teacher[name] != student[name]).any() for name in teacher)
    assert json.loads((tmp_path / "s" / "config.json").read_text())["provenance"]["method"] == "distribution-matching"
    assert not (tmp_path / "s" / "best").exists()
    assert run("sample", tmp_path / "s", "--steps", 1, "--n", 2, "--out", tmp_path / "x.npz")[0] == 0

    assert "trained for all of its 3 steps" in run(*words)[1]
    assert run("train", "--out", tmp_path / "u", *common, "--seed", 1, *TINY_WORDS)[0] == 0
    assert refused(run(*words, "--teacher", tmp_path / "u"), "teacher = sha256")
    assert refused(run(*words, "--adversarial", 0), "adversarial = 0.1, not 0.0")
    for option, word in (("--network", TINY), ("--flow", "gpfn-w2"), ("--divergence", "w2"), ("--predictor", "point")):
        assert refused(run(*words, option, word), f"of its teacher: leave out {option}")
    assert refused(run(*words, "--teacher", "nobody"), "no model 'nobody'")
    assert refused(run(*words, "--data", "mnist"), "(3, 8, 8)", "(1, 28, 28)")


def test_a_student_is_led_away_from_a_weak_model(run, arrays, tmp_path):
    common = ("--data", arrays, "--batch-size", 4, "--device", "cpu")
    for name, steps in (("t", 3), ("w", 1)):
        assert run("train", "--out", tmp_path / name, *common, "--steps", steps, *TINY_WORDS)[0] == 0
    words = ("train", "--out", tmp_path / "g", "--teacher", tmp_path / "t", "--weak", tmp_path / "w", *common)
    # At a rate of next to nothing the student stays what it begins as: the teacher.
    still = (*words[:2], tmp_path / "still", *words[3:], "--steps", 1, "--learning-rate", 1e-12)
    assert run(*still)[0] == 0
    begun, taught = (load_file(tmp_path / name / "model.safetensors") for name in ("still", "t"))
    assert all(torch.allclose(begun[name], taught[name], rtol=0, atol=1e-9) for name in taught)
    status, _, err = run(*words, "--steps", 2, "--guidance", 1.5)
    assert (status, err) == (0, "")
    origin = json.loads((tmp_path / "g" / "config.json").read_text())["provenance"]
    assert (origin["method"], origin["guidance"], origin["weak"]) == ("autoguidance", 1.5, str(tmp_path / "w"))
    assert run("sample", tmp_path / "g", "--steps", 2, "--n", 2, "--out", tmp_path / "x.npz")[0] == 0

    assert refused(run(*words, "--steps", 2), "guidance = 1.5, not 2.0")
    assert refused(run(*words[:3], "--weak", tmp_path / "w", *common), "needs a --teacher")
    assert refused(run(*words[:5], *common, "--guidance", 3), "name a weak model")
    assert refused(run(*words[:3], *common, "--guidance", 3), "--weak must name")
    assert refused(run(*words, "--guidance-rule", "projected"), "no --weak")
    assert refused(run(*words, "--steps", 2, "--adversarial", 1), "a student of a --teacher alone")
    other = ("train", "--out", tmp_path / "h", *words[3:], "--steps", 2)
    assert refused(run(*other, "--guidance", 0.5), "at least 1")
    assert (
        run("train", "--out", tmp_path / "e", *common, "--steps", 1, "--schedule", "linear:final=0.6", *TINY_WORDS)[0]
        == 0
    )
    assert refused(run(*other, "--weak", tmp_path / "e"), "the teacher's flow")


def test_train_with_coupled_noise(run, arrays, tmp_path, monkeypatch):
    words = ("train", "--data", arrays, "--steps", 2, "--batch-size", 8, "--coupling", "ot", *TINY_WORDS)
    assert run(*words, "--out", tmp_path / "m")[0] == 0
    assert json.loads((tmp_path / "m" / "config.json").read_text())["flow"]["coupling"]["kind"] == "ot"
    assert refused(run(*words, "--out", tmp_path / "b", "--flow", "bfn"), "the flow bfn has no coupling")
    monkeypatch.setitem(sys.modules, "ot", None)
    assert refused(run(*words, "--out", tmp_path / "b"), "pip install 'proxflow[transport]'", status=1)
    assert not (tmp_path / "b").exists()
    sampling = ("sample", tmp_path / "m", "--n", 2, "--steps", 2, "--out", tmp_path / "x.npz", "--device", "cpu")
    assert run(*sampling)[0] == 0
    assert refused(run(*sampling, "--sampler", "marginal"), "sampler without noise")


def test_reflow_then_sample(run, model, tmp_path):
    words = ("reflow", model, "--pairs", 20, "--pair-steps", 2, "--steps", 3, "--batch-size", 4, "--device", "cpu")
    status, out, err = run(*words, "--out", tmp_path / "s")
    assert (status, err) == (0, "")
    assert "76 network passes" in out  # 20 pairs of 2 evaluations, 3 steps of 4 examples of 3 passes
    assert f"proxflow sample {tmp_path / 's'}" in out
    provenance = json.loads((tmp_path / "s" / "config.json").read_text())["provenance"]
    assert provenance["reflow"]["source"] == str(model)
    assert {"hardware", "versions", "training", "origin"} <= provenance.keys()
    assert run("sample", tmp_path / "s", "--n", 2, "--steps", 1, "--out", tmp_path / "x.npz", "--device", "cpu")[0] == 0
    assert run(*words, "--rounds", 2, "--out", tmp_path / "s")[0] == 0

    assert refused(run(*words, "--out", tmp_path / "s", "--pair-steps", 3), "pair_steps = 2, not 3")
    assert refused(run(*words, "--out", tmp_path / "r", "--rounds", 0), "rounds")
    assert refused(run(*words, "--out", tmp_path / "r", "--clip", "inf"), "--clip")
    assert refused(run(*words, "--out", tmp_path / "r", "--seed", -1), "--seed")
    bfn = save_model(tmp_path / "bfn", flow="bfn")
    assert refused(run("reflow", bfn, *words[2:], "--out", tmp_path / "r"), "reflow needs")
    assert refused(run("train", "--out", tmp_path / "r", "--coupling", "reflow"), "command reflow")
    assert refused(run(*words, "--out", model), "did not begin")
    assert not (tmp_path / "r").exists()


def test_times_then_sample_and_evaluate(run, tmp_path):
    folder, drawn = save_model(tmp_path / "m"), ("sample", tmp_path / "m", "--n", 4, "--out", tmp_path / "x.npz")

    def images(*words):
        status, out, _ = run(*drawn, *words)
        assert status == 0
        return np.load(tmp_path / "x.npz")["images"], "times found" in out

    others = (("--steps", 2), ("--steps", 3, "--sampler", "deterministic"))
    before, untouched = images("--steps", 3)[0], [images(*words)[0] for words in others]
    weights = (folder / "model.safetensors").read_bytes()
    status, out, err = run("times", folder, "--steps", 3, "--n", 4)
    assert (status, err) == (0, "")
    assert "3 evaluations: " in out
    assert (folder / "model.safetensors").read_bytes() == weights
    times = json.loads((folder / "config.json").read_text())["times"]
    assert list(times) == ["multistep2"]
    assert list(times["multistep2"]) == ["3"]
    model = models.load(folder)
    expected = proxflow.sample(model.predictor, model.flow, (4, *model.shape), nfe=3, times=times["multistep2"]["3"])
    found, said = images("--steps", 3)
    assert said
    assert (found == to_bytes(expected).permute(0, 2, 3, 1).numpy()).all()
    assert (found != before).any()
    for words, as_before in zip(others, untouched, strict=True):
        found, said = images(*words)
        assert not said
        assert (found == as_before).all()
    # Others join those that are there, also in another folder.
    assert run("times", folder, "--steps", 2, 1, "--n", 4, "--sampler", "unipc", "--out", tmp_path / "o")[0] == 0
    both = models.load(tmp_path / "o").times
    assert both["multistep2"][3] == tuple(times["multistep2"]["3"])
    assert set(both["unipc"]) == {1, 2}
    words = ("evaluate", folder, "--data", write_idx(tmp_path / "idx"), "--n", 4, "--out", tmp_path / "scores.json")
    for steps, held in ((3, times["multistep2"]["3"]), (2, None)):
        assert run(*words, "--steps", steps)[0] == 0
        (cell,) = json.loads((tmp_path / "scores.json").read_text())["cells"]
        assert cell.get("times") == held


def test_times_refuses(run, model, tmp_path):
    assert refused(run("times", "mnist"), "--out")
    for words, expected in (
        (["--steps", 0], "--steps"),
        (["--n", 0], "--n"),
        (["--sampler", "stochastic"], "draws noise on its way"),
        (["--seed", -1], "--seed"),
    ):
        assert refused(run("times", model, *words), expected)


def test_train_refuses_a_folder_with_another_model(run, arrays, tmp_path, no_work):
    folder = save_model(tmp_path / "m")
    assert refused(run("train", "--out", folder, "--data", arrays, *TINY_WORDS), "did not begin")


def test_train_reads_idx_folders_and_picture_folders(run, tmp_path):
    imagefiles.write(tmp_path / "pictures", noise(10, (9, 7)))
    common = ("--steps", 1, "--batch-size", 4, *TINY_WORDS)
    assert run("train", "--out", tmp_path / "a", "--data", tmp_path / "pictures", *common)[0] == 0
    assert json.loads((tmp_path / "a" / "config.json").read_text())["data"]["shape"] == [1, 9, 7]
    assert run("train", "--out", tmp_path / "b", "--data", write_idx(tmp_path / "idx"), *common)[0] == 0
    assert json.loads((tmp_path / "b" / "config.json").read_text())["data"]["shape"] == [1, 28, 28]


def test_fashion_mnist_by_name_is_asked_for_where_it_is_not_installed(run, model, tmp_path, monkeypatch, no_work):
    monkeypatch.setattr(proxflow.data.fashion_mnist, "FOLDER", tmp_path / "nowhere")
    for words in (("train", "--out", tmp_path / "a"), ("evaluate", model)):
        told = ("not installed", "apt-get install dataset-fashion-mnist", "give the folder")
        assert refused(run(*words, "--data", "fashion-mnist"), *told)
    words = ("train", "--out", tmp_path / "a", "--data", "fashion-mnist", "--size", 28)
    assert refused(run(*words), "fashion-mnist has a size of its own")


@needs_fashion_mnist
def test_train_on_fashion_mnist_by_name(run, tmp_path):
    words = ("--data", "fashion-mnist", "--steps", 1, "--batch-size", 4, *TINY_WORDS)
    assert run("train", "--out", tmp_path / "a", *words)[0] == 0
    held = json.loads((tmp_path / "a" / "config.json").read_text())
    assert held["provenance"]["data"] == "60000 images of fashion-mnist"
    assert held["data"]["shape"] == [1, 28, 28]


def test_train_refuses_wrong_numbers_before_it_works(run, arrays, tmp_path, no_work):
    for words, expected in (
        (["--steps", 0], "steps must be at least 1, got 0"),
        (["--batch-size", 0], "batch_size"),
        (["--checkpoint-every", 0], "checkpoint_every"),
        (["--learning-rate", 0], "learning_rate"),
        (["--learning-rate", "nan"], "--learning-rate must be a finite number, got nan"),
        (["--weight-decay", "nan"], "--weight-decay"),
        (["--clip", "inf"], "--clip"),
        (["--clip", 0], "clip"),
        (["--ema", 1], "ema"),
        (["--seed", -1], "--seed"),
        (["--network", "unet:channels=0"], "channels"),
        (["--network", "unet:channels=many"], "channels must be a whole number"),
        (["--network", "unet:multipliers=()"], "multiplier"),
        (["--network", "unet:blocks=0"], "blocks"),
        (["--network", "unet:patch=0"], "patch"),
        (["--network", "unet:attention=5"], "attention"),
        (["--network", "unet:dropout=1.5"], "dropout"),
        (["--network", "unet:colour=1"], "its settings are channels"),
        (["--flow", "bfn", "--schedule", "cosine"], "the flow bfn has no schedule"),
    ):
        assert refused(run("train", "--out", tmp_path / "m", "--data", arrays, *TINY_WORDS, *words), expected)
    assert not (tmp_path / "m").exists()
    (tmp_path / "file").write_text("")
    result = run("train", "--out", tmp_path / "file" / "m", "--data", arrays, *TINY_WORDS)
    assert refused(result, "cannot write to the folder")


def test_damaged_data_are_refused(run, arrays, tmp_path, no_work):
    def bad(source, *expected):
        return refused(run("train", "--out", tmp_path / "m", "--data", source, *TINY_WORDS), *expected)

    def array(name, **values):
        np.savez(tmp_path / name, **values)
        return tmp_path / name

    def pictures(name, *images):
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            image.save(tmp_path / name / f"{index}.png")
        return tmp_path / name

    whole = arrays.read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    np.save(tmp_path / "single.npy", noise(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    assert bad(tmp_path / "nowhere", "no training data", "IDX", "PNG", ".npz")
    assert bad(tmp_path / "nowhere.npz", "does not exist")
    assert bad(tmp_path / "cut.npz", "no intact .npz file")
    assert bad(tmp_path / "flipped.npz", "no intact .npz file")
    assert bad(tmp_path / "single.npz", "single array")
    assert bad(array("key.npz", pictures=noise(3), others=noise(3)), '"images"', "pictures")
    assert bad(array("real.npz", images=np.full((3, 8, 8, 1), np.nan, np.float32)), "levels from nan", "finite")
    assert bad(array("flat.npz", images=noise(3)[:, 0, 0]), "(3, 1)", "channels")
    assert bad(array("none.npz", images=noise(0)), "not empty")
    assert bad(array("object.npz", images=np.array([{}])), "no intact array")  # would need a pickle

    grey = Image.fromarray(noise(1, (8, 8))[0, ..., 0])
    assert bad(pictures("nothing"), "holds no pictures")
    cut = pictures("cut", grey) / "0.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    assert bad(tmp_path / "cut", "0.png", "intact picture")

    idx = write_idx(tmp_path / "idx") / "train-images-idx3-ubyte"
    idx.write_bytes(idx.read_bytes()[:-1])
    assert bad(tmp_path / "idx", "train-images-idx3-ubyte", "expected exactly")


def test_train_on_rows_of_numbers_and_sample_them(run, tmp_path):
    rows = np.random.default_rng(0).normal(size=(200, 2)) * [1, 50] + [1000, 0]
    np.save(tmp_path / "points.npy", rows)
    words = ("--data", tmp_path / "points.npy", "--steps", 60, "--batch-size", 16, "--device", "cpu")
    status, out, err = run("train", "--out", tmp_path / "p", *words, "--network", "mlp:width=16,depth=2")
    assert (status, err) == (0, "")
    assert "190 rows of 2 columns" in out
    assert (tmp_path / "p" / "samples" / "step-00000060.png").exists()
    held = json.loads((tmp_path / "p" / "config.json").read_text())
    assert held["provenance"]["data"] == f"190 rows of {tmp_path / 'points.npy'}"
    for name in ("x.npy", "x.csv", "x.npz", "x.png"):
        status, out, err = run("sample", tmp_path / "p", "--n", 20, "--steps", 2, "--out", tmp_path / name)
        assert (status, err) == (0, "")
        assert "20 rows" in out
    drawn = np.load(tmp_path / "x.npy")
    assert (drawn == np.loadtxt(tmp_path / "x.csv", delimiter=",")).all()
    assert (drawn == np.load(tmp_path / "x.npz")["x"]).all()
    assert drawn.shape == (20, 2)
    assert 900 < drawn[:, 0].mean() < 1100  # in their own units
    assert refused(run("sample", tmp_path / "p", "--out", tmp_path / "x.jpg"), ".csv")
    assert refused(run("train", "--out", tmp_path / "q", *words, "--network", "unet"), "shape")
    assert refused(run("train", "--out", tmp_path / "q", *words, "--size", 8), "size")
    assert refused(run("train", "--out", tmp_path / "q", *words, "--kind", "image"), "points.npy")


@pytest.mark.parametrize(
    "flow", [name for name in names.BUILT_IN["flows"] if name not in ("bfn-discrete", "bfn-discretised", "masked")]
)
def test_every_flow_of_real_numbers_trains_and_samples_by_default(run, arrays, tmp_path, flow):
    words = ("--data", arrays, "--steps", 2, "--batch-size", 4, "--grid", 4, *TINY_WORDS)
    status, _, err = run("train", "--out", tmp_path / "m", "--flow", flow, *words)
    assert (status, err) == (0, "")
    status, _, err = run("sample", tmp_path / "m", "--n", 2, "--steps", 2, "--out", tmp_path / "x.npz")
    assert (status, err) == (0, "")


def test_words_choose_every_part(run, arrays, tmp_path):
    words = ("train", "--out", tmp_path / "m", "--data", arrays, "--steps", 1, "--batch-size", 4, *TINY_WORDS)
    parts = ("--flow", "gpfn:weight_floor=0.5", "--divergence", "kl", "--schedule", "linear:final=0.6")
    assert run(*words, *parts)[0] == 0
    held = json.loads((tmp_path / "m" / "config.json").read_text())
    assert held["flow"]["divergence"] == {"kind": "kl"}
    assert held["flow"]["weight_floor"] == 0.5
    assert held["flow"]["schedule"] == {"kind": "linear", "final": 0.6}
    assert held["network"]["channels"] == 8
    velocity = (*words[:2], tmp_path / "v", *words[3:], "--parameterisation", "v")
    assert run(*velocity)[0] == 0
    assert json.loads((tmp_path / "v" / "config.json").read_text())["predictor"]["parameterisation"] == "v"
    draws = (*words[:2], tmp_path / "d", *words[3:], "--predictor", "draw")
    assert run(*draws)[0] == 0
    assert refused(
        run(*draws, "--out", tmp_path / "e", "--parameterisation", "v"), "draw has no setting", "parameterisation"
    )
    sampling = ("sample", tmp_path / "v", "--n", 2, "--steps", 2, "--out", tmp_path / "x.npz", "--device", "cpu")
    assert run(*sampling, "--sampler", "marginal:kappa=0.5")[0] == 0


def test_a_folder_of_an_earlier_version_goes_on(run, arrays, tmp_path):
    words = ("train", "--out", tmp_path / "m", "--data", arrays, "--steps", 4, "--batch-size", 4, *TINY_WORDS)
    assert run(*words, "--schedule", "linear:final=0.6")[0] == 0
    held = json.loads((tmp_path / "m" / "run.json").read_text())
    for name in ("flow", "network", "predictor", "weak"):
        del held[name]
    held |= {
        "flow": "gpfn-w2",
        "channels": 8,
        "multipliers": [1],
        "blocks": 1,
        "attention": [],
        "patch": 4,
        "dropout": 0.0,
    }
    held |= {"sigma1": 0.7, "final": 0.6, "coupling": "independent", "predictor": "point", "worse": None}
    (tmp_path / "m" / "run.json").write_text(json.dumps(held))
    status, out, _ = run(*words, "--schedule", "linear:final=0.6")
    assert status == 0
    assert "trained for all of its 4 steps" in out
    assert refused(run(*words), "flow.schedule.final = 0.6, not 1.0")
    (tmp_path / "m" / "run.json").write_text(json.dumps({**held, "coupling": "ot"}))
    assert refused(run(*words, "--schedule", "linear:final=0.6"), "flow.coupling = ot, not None")
    (tmp_path / "m" / "run.json").write_text(json.dumps({**held, "channels": "eight"}))
    assert refused(run(*words), "run.json", "channels")
    (tmp_path / "m" / "run.json").write_text("[]")
    assert refused(run(*words), "run.json", "expected the settings")


def test_a_loss_that_is_not_finite_stops_training(run, arrays, tmp_path):
    words = ("--steps", 50, "--batch-size", 4, "--learning-rate", 1e30, "--warmup-steps", 0)
    result = run("train", "--out", tmp_path / "m", "--data", arrays, *words, *TINY_WORDS)
    assert refused(result, "not finite", "Lower the learning rate", status=1)


def test_a_damaged_checkpoint_is_refused_and_left(run, arrays, tmp_path):
    words = ("train", "--out", tmp_path / "m", "--data", arrays, "--steps", 60, "--batch-size", 4, *TINY_WORDS)
    run(*words)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["provenance"]["steps"] = 50  # as an interrupted training leaves it
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    shutil.rmtree(tmp_path / "m" / "checkpoints")
    checkpoint = tmp_path / "m" / "checkpoint.safetensors"  # of the first format
    checkpoint.write_bytes(b"broken")
    assert refused(run(*words), "checkpoint.safetensors is not a whole safetensors file")
    assert checkpoint.read_bytes() == b"broken"


def interrupt_when(ready, script, *words):
    """Starts the command line in a process of its own, interrupts it, and returns its standard error."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background had interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130, err
    assert err == "proxflow: interrupted; give the same command again to go on\n"


def test_an_interrupted_training_goes_on(run, arrays, tmp_path):
    def words(folder):
        fixed = ("--steps", 200, "--batch-size", 8, "--checkpoint-every", 50)
        return ("train", "--out", tmp_path / folder, "--data", arrays, *fixed, *TINY_WORDS)

    script = "import sys; from proxflow.cli import main; sys.exit(main(sys.argv[1:]))"
    interrupt_when((tmp_path / "cut" / "config.json").exists, script, *words("cut"))
    done = json.loads((tmp_path / "cut" / "config.json").read_text())["provenance"]["steps"]
    assert 50 <= done < 200
    assert run("sample", tmp_path / "cut", "--n", 2, "--steps", 1, "--out", tmp_path / "x.npz")[0] == 0

    status, out, _ = run(*words("cut"))
    assert status == 0
    assert f"step {done} of" not in out
    assert run(*words("whole"))[0] == 0
    cut, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


# evaluate -------------------------------------------------------------------------------------------------------------


def test_evaluate_a_model(run, model, tmp_path):
    data, path = write_idx(tmp_path / "idx"), tmp_path / "new" / "scores.json"
    words = ("evaluate", model, "--data", data, "--n", 20, "--steps", 2, "--sampler", "stochastic")
    status, out, err = run(*words, "--seed", 3, "--out", path)
    assert (status, err) == (0, "")
    for word in ("Fréchet", "precision", "recall", "diversity", "mnist-classifier", "20 images", "60 test images"):
        assert word in out
    content = json.loads(path.read_text())
    (cell,) = content["cells"]
    assert {"frechet", "floor", "precision", "recall", "diversity", "extractor"} <= set(cell)
    assert (cell["flow"], cell["sampler"], cell["nfe"], cell["seed"]) == ("gpfn-w2", "stochastic", 2, 3)
    assert cell["samples"] == 20
    assert {"hardware", "versions"} <= set(content)
    # Every score has its standard error, interval and floor, and the record says what it was measured under.
    for name in ("kid", "precision", "recall", "density", "coverage", "diversity", "vendi", "sliced_wasserstein"):
        assert math.isfinite(cell[name])
        assert math.isfinite(cell[f"floor_{name}"])
        assert cell["intervals"][name][0] <= cell["intervals"][name][1]
        assert cell["errors"][name] >= 0.0
    assert cell["nearest_real"] == cell["floor_nearest"] > 0.0
    assert cell["kid_error"] > 0.0
    assert cell["accuracy"] is None
    assert {len(cell[f"{name}_sha256"]) for name in ("extractor", "reference", "training")} == {64}
    assert (cell["dimension"], cell["neighbours"]) == (64, 3)
    for word in (
        "KID",
        "density",
        "coverage",
        "Vendi",
        "sliced Wasserstein",
        "nearest training image",
        "95 % interval",
    ):
        assert word in out
    # The real images are noise as the reference is; an untrained network's images are not.
    assert cell["floor"] < cell["frechet"]
    assert f"{cell['frechet']:.2f}" in out
    assert f"{cell['floor']:.2f}" in out


def test_evaluate_a_model_against_its_own_pictures(run, model, tmp_path):
    chance = np.random.default_rng(0)
    (tmp_path / "own").mkdir()
    for index in range(40):
        sides = (12, 10 + index % 2, 3)
        Image.fromarray(chance.integers(0, 256, sides, dtype=np.uint8)).save(tmp_path / "own" / f"{index}.jpg")
    words = ("--steps", 1, "--batch-size", 4, "--held-out", 0.25, "--seed", 3, "--grid", 0, *TINY_WORDS)
    own = ("--data", tmp_path / "own", "--size", 8)
    assert run("train", "--out", tmp_path / "r", *own, *words)[0] == 0
    told = ("--steps", 1, "--device", "cpu", "--out", tmp_path / "s.json")

    def scores(*words):
        status, out, err = run("evaluate", *words, *told)
        assert (status, err) == (0, "")
        return json.loads((tmp_path / "s.json").read_text())["cells"][0], out

    cell, out = scores(tmp_path / "r")  # as it was trained, without a word about the data
    assert "30 images, and 30 real training images, against 10 images kept from training of" in out
    assert "features: pixels, 192 dimensions" in out
    assert "40 colour pictures of 8 x 8" in out
    assert cell["reference"] == f"10 test images of {tmp_path / 'own'}"
    assert scores(tmp_path / "r", "--data", tmp_path / "own")[0] == cell
    # Pictures made elsewhere, in a folder: those of the data themselves are near.
    drawn = proxflow.data.read_pictures(tmp_path / "own", 8)[:20]
    imagefiles.write(tmp_path / "drawn", drawn.permute(0, 2, 3, 1).numpy())
    real, out = scores(tmp_path / "drawn", *own)
    assert "against 20 images (half of all)" in out
    assert real["frechet"] < cell["frechet"]
    assert real["nearest"] < cell["nearest"]
    # What is of another shape, or not known, is refused; nothing is held against MNIST unasked.
    assert refused(run("evaluate", tmp_path / "r", "--data", tmp_path / "own", "--size", 9), "(3, 8, 8)", "(3, 9, 9)")
    assert refused(run("evaluate", model), "does not say which data it was trained on", "give --data")
    np.savetxt(tmp_path / "rows.csv", np.zeros((9, 2)), delimiter=",")
    assert refused(
        run("evaluate", tmp_path / "r", "--data", tmp_path / "rows.csv"),
        "read as rows",
        "images are compared with images",
    )
    imagefiles.write(tmp_path / "x.npz", noise(20, (8, 8)))
    assert refused(run("evaluate", tmp_path / "x.npz"), "shape (1, 8, 8)", "give --data")
    shutil.rmtree(tmp_path / "own")
    assert refused(run("evaluate", tmp_path / "r"), "no data set", "own")


def test_evaluate_images_made_elsewhere(run, model, tmp_path):
    data = write_idx(tmp_path / "idx")

    def scores(*words):
        status, _, err = run("evaluate", "--data", data, "--out", tmp_path / "s.json", *words)
        assert (status, err) == (0, "")
        return json.loads((tmp_path / "s.json").read_text())["cells"][0]

    run("sample", model, "--n", 20, "--steps", 2, "--out", tmp_path / "x.npz")
    run("sample", model, "--n", 20, "--steps", 2, "--out", tmp_path / "x")
    own, array = scores(model, "--n", 20, "--steps", 2), scores("--images", tmp_path / "x.npz")
    folder = scores("--images", tmp_path / "x")
    for name in ("frechet", "floor", "precision", "recall", "diversity", "samples"):
        assert array[name] == pytest.approx(own[name], rel=1e-5)
        assert array[name] == folder[name]
    assert scores("--images", tmp_path / "x.npz", "--n", 10)["samples"] == 10


def test_evaluate_refuses_before_it_works(run, model, tmp_path, no_work):
    data, file = write_idx(tmp_path / "idx"), tmp_path / "file"
    file.write_text("")
    imagefiles.write(tmp_path / "small.npz", noise(10, (8, 8)))
    imagefiles.write(tmp_path / "few.npz", noise(3))
    colour = save_model(tmp_path / "colour", (3, 28, 28))
    for words, expected in (
        ([model, "--n", 3], "--n must be at least 4"),
        ([model, "--n", 81], "80 real training images"),
        ([model, "--steps", 0], "at least 1"),
        ([model, "--out", tmp_path / "scores.txt"], ".json"),
        ([model, "--out", file / "scores.json"], "cannot write"),
        ([colour], "(3, 28, 28)"),
        (["--images", tmp_path / "small.npz"], "(1, 8, 8)"),
        (["--images", tmp_path / "few.npz"], "at least 4 images"),
        (["--images", tmp_path / "nowhere"], "no images"),
        (["nonesuch"], "'nonesuch'"),
    ):
        assert refused(run("evaluate", "--data", data, *words), expected)
    assert refused(run("evaluate", model, "--data", tmp_path / "nowhere"), "no data set")


def test_evaluate_tabulates_like_beside_like(run, model, tmp_path):
    data = write_idx(tmp_path / "idx")
    for name, seed in (("a", 1), ("b", 2)):
        imagefiles.write(tmp_path / f"{name}.npz", noise(20, seed=seed))
    imagefiles.write(tmp_path / "pictures", noise(20, seed=1))
    words = ("evaluate", "--data", data)

    first = run(*words, tmp_path / "a.npz", "--out", tmp_path / "a.json")
    second = run(*words, tmp_path / "b.npz", "--out", tmp_path / "b.json")
    drawn = run(*words, model, "--n", 20, "--steps", 1, "--out", tmp_path / "model.json")
    assert (first[0], second[0], drawn[0]) == (0, 0, 0)
    a, b, own = (json.loads((tmp_path / f"{name}.json").read_text())["cells"][0] for name in ("a", "b", "model"))

    out = tmp_path / "all.json"
    status, shown, err = run(
        *words,
        tmp_path / "a.npz",
        tmp_path / "pictures",
        model,
        tmp_path / "b.json",
        "--n",
        20,
        "--steps",
        1,
        "--out",
        out,
    )
    assert (status, err) == (0, "")
    cells = json.loads(out.read_text())["cells"]
    assert [cell["frechet"] for cell in cells] == pytest.approx([a["frechet"], a["frechet"], own["frechet"]], rel=1e-9)
    for cell in (a, b, own):
        assert (
            f"{cell['frechet']:.2f} ±{cell['errors']['frechet']:.2f}" in shown if "frechet" in cell["errors"] else True
        )
        assert f"{cell['coverage']:.3f} ±{cell['errors']['coverage']:.3f}" in shown
        assert f"{cell['floor']:.2f}" in shown

    # Results alone, without evaluating anything.
    status, shown, err = run("evaluate", tmp_path / "a.json", tmp_path / "b.json", "--data", tmp_path / "nowhere")
    assert (status, err) == (0, "")
    assert f"{b['recall']:.3f} ±" in shown
    # --images is one more source.
    status, shown, _ = run(*words, "--images", tmp_path / "a.npz", tmp_path / "b.npz")
    assert status == 0
    assert f"{b['frechet']:.2f}" in shown


def test_evaluate_refuses_to_tabulate_unlike_with_unlike(run, model, tmp_path, no_work, monkeypatch):
    data, other = write_idx(tmp_path / "idx"), write_idx(tmp_path / "other", train=90, test=61)
    imagefiles.write(tmp_path / "a.npz", noise(20, seed=1))
    imagefiles.write(tmp_path / "few.npz", noise(10, seed=1))
    for name, words in (
        ("like", ("--data", data)),
        ("reference", ("--data", other)),
        ("pixels", ("--data", data, "--extractor", "pixels")),
        ("clothes", ("--data", data, "--extractor", "fashion-mnist")),
        ("few", ("--data", data, "--n", 10)),
    ):
        assert run("evaluate", tmp_path / "a.npz", *words, "--out", tmp_path / f"{name}.json")[0] == 0
    like = tmp_path / "like.json"
    monkeypatch.setattr(scoreboard, "features", None)  # from here on nothing is worth computing
    for name, told in (
        ("reference", ("reference", "61 test images", "reference_sha256")),
        ("pixels", ("extractor: mnist-classifier and pixels", "sha256: 953281188c15 and e3b0c44298fc")),
        ("clothes", ("extractor: mnist-classifier and fashion-mnist-classifier", "sha256: 953281188c15 and")),
        ("few", ("samples: 20 and 10",)),
    ):
        unlike = tmp_path / f"{name}.json"
        assert refused(run("evaluate", like, unlike), "cannot stand in one table", "like.json", unlike.name, *told)
        # The same beside images yet to be drawn: refused before they are.
        assert refused(run("evaluate", model, unlike, "--data", data, "--n", 20), "cannot stand in one", unlike.name)
    assert refused(run("evaluate", tmp_path / "a.npz", tmp_path / "few.npz", "--data", data), "20 and 10", "--n 10")
    assert refused(run("evaluate", model, tmp_path / "a.npz", "--data", data), "samples: 80 and 20")


def test_evaluate_reads_what_experiments_wrote_and_shows_intervals_over_seeds(run, tmp_path):
    cell = {"flow": "bfn", "sampler": "stochastic", "nfe": 5, "samples": 500, "precision": 0.5, "recall": 0.25}
    cells = [{**cell, "seed": seed, "frechet": 10.0 + seed, "diversity": 0.9, "floor": 1.25} for seed in (0, 1, 2)]
    cells = [{**cell, "extractor": "mnist-classifier 953281188c15"} for cell in cells]
    content = {
        "reference": "10000 test images of mnist",
        "cells": cells,
        "extractor": {"sha256": "953281188c15" + "0" * 52},
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    status, out, err = run("evaluate", path)
    assert (status, err) == (0, "")
    for text in ("bfn stochastic NFE 5", "over 3 seeds", "11.00", "10.00 to 12.00", "1.25"):
        assert text in " ".join(out.split())
    kept = Path(__file__).parent.parent / "results" / "mnist-quick" / "results.json"
    status, out, err = run("evaluate", kept)
    assert (status, err) == (0, "")
    assert f"{json.loads(kept.read_text())['cells'][0]['frechet']:.2f}" in out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "holds no results"),
        ('{"cells": []}', "holds no results"),
        ('{"cells": [3]}', "no record"),
        ('{"cells": [{"frechet": 1.0, "samples": 5}]}', "does not state its extractor"),
        ('{"cells": [{"extractor": "mnist 12", "samples": 5, "reference": "r"}]}', "does not state its extractor"),
        ("{", "results.json"),
    ],
)
def test_evaluate_refuses_files_that_are_no_results(run, tmp_path, content, told):
    (tmp_path / "results.json").write_text(content)
    assert refused(run("evaluate", tmp_path / "results.json"), told)


def test_evaluate_judges_labels_and_takes_other_features(run, tmp_path):
    data = write_idx(tmp_path / "idx")
    digits = proxflow.data.load("mnist", "test")
    images = digits.images[:40].permute(0, 2, 3, 1).numpy()
    labels = digits.labels[:40].numpy().copy()
    labels[:10] = (labels[:10] + 1) % 10
    np.savez(tmp_path / "labelled.npz", images=images, labels=labels)
    words = ("evaluate", tmp_path / "labelled.npz", "--data", data, "--out", tmp_path / "s.json")
    assert run(*words)[0] == 0
    assert json.loads((tmp_path / "s.json").read_text())["cells"][0]["accuracy"] == 0.75
    assert run(*words, "--extractor", "pixels")[0] == 0
    cell = json.loads((tmp_path / "s.json").read_text())["cells"][0]
    assert (cell["accuracy"], cell["dimension"]) == (0.75, 784)
    assert "frechet" not in cell["intervals"]  # fewer images than pixels

    np.savez(tmp_path / "labelled.npz", images=images, labels=labels[:-1])
    assert refused(run(*words), "labels", "40 images")
    assert refused(run(*words, "--extractor", "inception"), "weights", "safetensors")
    assert refused(run(*words, "--inception-weights", tmp_path / "x"), "--extractor inception")


def test_evaluate_takes_the_classifier_of_the_data(run, tmp_path, monkeypatch):
    data = write_idx(tmp_path / "idx")
    images = proxflow.data.load("mnist", "test").images[:40]
    labels = proxflow.metrics.load_classifier("fashion-mnist")(images / 127.5 - 1.0).argmax(1)
    np.savez(tmp_path / "x.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())

    def cell(*words):
        words = ("evaluate", tmp_path / "x.npz", "--data", data, *words, "--out", tmp_path / "s.json")
        status, out, err = run(*words)
        assert (status, err) == (0, "")
        (found,) = json.loads((tmp_path / "s.json").read_text())["cells"]
        return found, out

    digits, clothes = (f"{w.name} {w.sha256[:12]}" for w in [*proxflow.metrics.CLASSIFIERS.values()][:2])
    plain, _ = cell()
    assert (plain["extractor"], plain["classifier"]) == (digits, digits)
    assert plain["accuracy"] < 0.5
    asked, _ = cell("--extractor", "fashion-mnist")
    assert (asked["extractor"], asked["classifier"], asked["accuracy"]) == (clothes, clothes, 1.0)

    pretend_fashion_mnist(data, monkeypatch)
    own, out = cell()
    named = {"reference": "60 test images of fashion-mnist", "training": "80 training images of fashion-mnist"}
    assert own == {**asked, **named}  # without asking, and whatever the folder is called
    assert "features: fashion-mnist-classifier, 64 dimensions" in out
    pixels, _ = cell("--extractor", "pixels")
    assert (pixels["classifier"], pixels["accuracy"]) == (clothes, 1.0)
    # Features of digits are still there for who asks, and never beside those of clothes.
    assert cell("--extractor", "mnist")[0]["extractor"] == digits
    assert cell("--extractor", "mnist")[0]["classifier"] == clothes


# reproduce ------------------------------------------------------------------------------------------------------------

# Small enough for a test: 300 images of MNIST, tiny networks, few cells.
SMALL = """
import sys
from proxflow import data
from proxflow.config import TrainingConfig
from proxflow.studies import presets

whole = data.load
def small(source, split):
    found = whole(source, "test")
    part = slice(0, 300) if split == "train" else slice(300, 500)
    return data.ImageData(found.name, found.images[part], found.labels[part])
data.load = small
presets.PRESETS["quick"] = presets.MnistPreset(
    network="unet:channels=8,multipliers=1,patch=4",
    training=TrainingConfig(steps=50, batch_size=8, checkpoint_every=50),
    samples=32,
    minutes="about a minute",
    nfes=(5, 10, 20),
    samplers={"gpfn-w2": ("deterministic", "stochastic", "multistep2"), "bfn": ("deterministic", "stochastic")},
)
"""


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(proxflow.data, "load", proxflow.data.load)
    monkeypatch.setitem(presets.PRESETS, "quick", presets.PRESETS["quick"])
    (tmp_path / "small.py").write_text(SMALL)
    runpy.run_path(str(tmp_path / "small.py"))


def test_an_interrupted_reproduction_goes_on(run, small, tmp_path):
    out = tmp_path / "run"
    words = ("reproduce", "mnist", "--preset", "quick", "--out", out, "--device", "cpu")

    def cells():
        return list((out / "cells").glob("[!.]*.json"))

    script = SMALL + "from proxflow.cli import main\nsys.exit(main(sys.argv[1:]))"
    interrupt_when(lambda: len(cells()) >= 3, script, *words)
    # A model that was still training when it stopped has checkpoints alone.
    ended = [*cells(), *out.glob("models/*/config.json"), *out.glob("models/*/model.safetensors")]
    kept = {path: path.stat().st_mtime_ns for path in ended}
    assert 3 <= len(cells()) < 15
    assert not (out / "results.json").exists()

    status, said, err = run(*words)
    assert (status, err) == (0, "")
    assert "about a minute" in said
    assert "same command goes on" in said
    assert "train:" not in said
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    results = json.loads((out / "results.json").read_text())
    assert len(results["cells"]) == 15
    needed = {"flow", "sampler", "nfe", "frechet", "floor", "precision", "recall", "diversity", "samples", "seed"}
    assert all(needed | {"extractor"} <= set(cell) for cell in results["cells"])
    assert {"config", "hardware", "versions"} <= set(results)
    assert (out / "report.md").exists()
    assert (out / "report.html").exists()
    assert "report.html" in said
    assert "Fréchet distance of bfn" in said

    assert refused(run(*words, "--seed", 7), "a mnist run with seeds = [0], not [7]")
    status, said, err = run(*words, "--seeds", 2)
    assert (status, err) == (0, "")
    assert "with 1 seed, here 2" in said
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    results = json.loads((out / "results.json").read_text())
    assert [sum(cell["seed"] == seed for cell in results["cells"]) for seed in (0, 1)] == [15, 15]
    (out / "results.json").unlink()
    cell, config = out / "cells" / "bfn-stochastic-nfe020-seed0.json", out / "config.json"
    words_of_another = ("reproduce", "geometry", "--out", out, "--device", "cpu")
    assert refused(run(*words_of_another), "holds a run of mnist, not of geometry")
    record = json.loads(cell.read_text())
    cell.write_text(json.dumps({**record, "samples": 7}))
    assert refused(run(*words), f"{cell} has 7 samples, not {record['samples']}: choose another folder")
    for content in ("{", "[]"):
        cell.write_text(content)
        assert refused(run(*words), f"{cell}", "remove the file, and the same command scores its cell again")
    cell.unlink()
    weights = out / "models" / "gpfn-w2-seed0" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert refused(run(*words), f"remove {weights.parent}, and the same command trains it again")
    weights.write_bytes(whole)
    for folder in (out, out / "models"):
        models = ("is no model, but holds some: give one of", f"{out / 'models' / 'bfn-seed0'}", f"{weights.parent}")
        assert refused(run("sample", folder, "--out", tmp_path / "x.png"), *models)
    config.write_text("{")
    assert refused(run(*words), f"{config} is not readable", "choose another --out folder, or remove this one")


def test_a_reproduction_of_data_that_are_not_there_leaves_no_run(run, tmp_path):
    words = ("--out", tmp_path / "run", "--device", "cpu")
    assert refused(run("reproduce", "--data", tmp_path / "none", *words), "no data set")
    assert not list((tmp_path / "run").iterdir())  # else the right data would be refused as those of another run


@pytest.mark.parametrize("study", ["emoji", "tables"])
def test_studies_with_data_of_their_own_refuse_mnist(run, tmp_path, study, no_work):
    words = ("reproduce", study, "--data", "mnist", "--out", tmp_path / "run", "--device", "cpu")
    assert refused(run(*words), "leave --data out")


def test_reproduce_refuses_before_it_works(run, tmp_path, no_work):
    (tmp_path / "file").write_text("")
    assert refused(
        run("reproduce", "--out", tmp_path / "file" / "run", "--device", "cpu"), "cannot write to the folder"
    )
    assert refused(run("reproduce", "--out", tmp_path / "run", "--seed", -1), "--seed")
    assert not (tmp_path / "run").exists()


def test_a_study_refuses_images_that_it_could_not_score(run, tmp_path, monkeypatch):
    small = ImageData("small", torch.zeros(4, 1, 16, 16, dtype=torch.uint8), None)
    monkeypatch.setattr("proxflow.data.load", lambda *_: small)
    out = tmp_path / "run"
    assert refused(
        run("reproduce", "--out", out, "--device", "cpu"), "reads (1, 28, 28)", "mnist are (1, 16, 16): give --data"
    )
    assert not (out / "config.json").exists()


def test_the_study_of_posteriors_refuses_before_it_works(run, tmp_path):
    words = ("reproduce", "posterior", "--out", tmp_path / "run", "--device", "cpu")
    assert refused(run(*words, "--model", "nope"), "no model 'nope'")
    assert refused(run(*words, "--seeds", 2), "leave --seeds out")  # pictures of the last would pass for all
    assert refused(run(*words, "--model", "mnist", "--data", "emoji"), "models of mnist and fashion-mnist")
    assert not (tmp_path / "run" / "config.json").exists()


def test_each_experiment_learns_what_it_is_for(run, tmp_path, monkeypatch):
    asked = {}

    def reproduce(study, name, preset, out, device, say, dataset, processes):
        asked[study.name] = dataset
        raise OSError("a full disk")

    monkeypatch.setattr(trials, "reproduce", reproduce)
    for name in ("mnist", "few-step", "guidance", "posterior", "text", "tables", "emoji"):
        assert refused(run("reproduce", name, "--out", tmp_path / name, "--device", "cpu"), "a full disk", status=1)
    assert list(asked.values()) == ["mnist"] * 4 + ["bible", "scikit-learn", "emoji"]


def test_seeds_count_up_from_the_first(run, tmp_path, monkeypatch):
    asked = []

    def reproduce(*words):
        asked.append(words)
        raise OSError("a full disk")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "reproduce", reproduce)
    assert refused(run("reproduce", "--preset", "paper", "--seed", 4, "--device", "cpu"), "a full disk", status=1)
    study, name, preset, out, *_ = asked[0]
    assert (study.name, name, preset.seeds, out) == ("mnist", "paper", (4, 5, 6), Path("runs/mnist-paper"))
    for words, seeds in ((("--seeds", 1), (0,)), (("--seed", 4, "--seeds", 2), (4, 5))):
        assert refused(run("reproduce", "--preset", "paper", *words, "--device", "cpu"), "a full disk", status=1)
        assert asked[-1][2].seeds == seeds
    assert refused(run("reproduce", "--seeds", 0), "an experiment takes at least one seed, got --seeds 0")


def test_geometry_is_an_experiment_of_its_own(run, tmp_path, monkeypatch):
    asked = []

    def reproduce(*words):
        asked.append(words)
        raise OSError("a full disk")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "reproduce", reproduce)
    words = ("reproduce", "geometry", "--preset", "quick", "--seed", 4, "--device", "cpu")
    assert refused(run(*words), "a full disk", status=1)
    study, name, preset, out, *_ = asked[0]
    assert (study.name, name, out) == ("geometry", "quick", Path("runs/geometry-quick"))
    assert (preset.seeds, preset.further_seeds) == ((4,), (5, 6))
    assert refused(run(*words, "--seeds", 2), "a full disk", status=1)
    assert (asked[1][2].seeds, asked[1][2].further_seeds) == ((4, 5), ())
    assert refused(run("reproduce", "geometry", "--preset", "paper"), "presets quick and standard")


def test_the_geometry_study_ends_with_its_verdicts(run, tmp_path, monkeypatch):
    results = {
        "cells": [
            {"flow": flow, "sampler": "deterministic", "nfe": 5, "seed": seed, "frechet": distance}
            for flow, distances in {"kl": (9.0,), "w2-as-kl": (8.0,), "w2": (4.0, 5.0)}.items()
            for seed, distance in enumerate(distances)
        ],
        "pairs": [
            {"flow": "kl", "control": "w2-as-kl", "geometry": "kl", "matched": False, "weights": 0.1, "apart": []}
        ],
        "paths": {"kl": {"unexplained": [0.0]}},
    }
    monkeypatch.setattr(trials, "reproduce", lambda *words: results)
    monkeypatch.setattr(trials, "write_report", lambda out, device: [out / "report.md", out / "pairs.png"])
    status, said, err = run("reproduce", "geometry", "--out", tmp_path, "--device", "cpu")
    assert (status, err) == (0, "")
    assert "kl against w2-as-kl, deterministic" in said
    assert f"written: {tmp_path / 'report.md'}" in said
    assert "pairs.png" not in said


def test_mnist_is_the_default_model_and_comes_with_the_package(run, tmp_path):
    assert run("sample", "--n", 4, "--steps", 2, "--out", tmp_path / "x.npz")[0] == 0
    images = imagefiles.read(tmp_path / "x.npz")
    assert images.shape == (4, 28, 28, 1)
    assert 10 < images.mean() < 100  # strokes on a black ground
