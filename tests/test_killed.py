"""Commands interrupted or killed at any moment: no half-written file under its name, and no litter after the next run."""

import json
import os
import pathlib
import random
import re
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from fleet import start
from PIL import Image
from safetensors.torch import load_file
from support import first_images

from proxflow import data, models
from proxflow.cli import main
from proxflow.config import TrainingConfig
from proxflow.runtime import files, machine
from proxflow.runtime.files import sweep, writable_folder, write_json
from proxflow.studies import presets

TINY = ("--network", "unet:channels=8,multipliers=1,patch=4", "--grid", "2", "--checkpoint-every", "2")
FEW = ("--steps", "6", "--batch-size", "4", "--keep", "1")
COMMANDS = {
    "sample": ("sample", "model", "--n", "40", "--steps", "2", "--out", "out"),
    "train": ("train", "--data", "pictures", *TINY, *FEW, "--out", "out"),
    "evaluate": ("evaluate", "model", "--data", "pictures", "--n", "8", "--steps", "2", "--out", "out/scores.json"),
    "times": ("times", "model", "--steps", "2", "3", "--n", "2", "--out", "out"),
    "reflow": ("reflow", "model", "--pairs", "8", "--pair-steps", "1", *FEW, "--out", "out"),
    "reproduce": ("reproduce", "mnist", "--out", "out"),
}
SMALL = replace(
    presets.PRESETS["quick"],
    network="unet:channels=8,patch=4",
    training=TrainingConfig(steps=3, batch_size=8),
    samples=20,
    nfes=(1,),
    train_images=60,
    samplers={"gpfn-w2": ("deterministic",), "bfn": ("deterministic",)},
)
"""What ``reproduce`` does here."""


def work(folder, words):
    """Do a command in a process of its own, with a slow disk, so that many moments are within its writing."""
    flush, replace = os.fsync, pathlib.Path.replace
    os.fsync = lambda handle: (time.sleep(0.01), flush(handle))[1]
    pathlib.Path.replace = lambda path, target: (time.sleep(0.005), replace(path, target))[1]
    os.chdir(folder)
    presets.EXPERIMENTS["mnist"]["quick"] = SMALL
    data.load = first_images(300)
    machine.working_processes = lambda: 1  # the end of several is in tests/test_pool.py
    with open("said", "w", buffering=1) as said:
        sys.stdout = sys.stderr = said
        signal.signal(signal.SIGINT, signal.default_int_handler)
        pathlib.Path("begun").touch()
        os._exit(main(words))


def run(folder, words, number=None, after=0.0):
    """Run a command, and send a signal after some seconds: (exit status, seconds)."""
    (folder / "begun").unlink(missing_ok=True)
    process = start(work, folder, [*words, "--device", "cpu"])
    while process.is_alive() and not (folder / "begun").exists():
        time.sleep(0.002)
    begun = time.monotonic()
    if number is not None:
        process.join(after)
        if process.is_alive():
            os.kill(process.pid, number)
    process.join(60)
    seconds = time.monotonic() - begun
    assert process.exitcode is not None
    assert "Traceback" not in (folder / "said").read_text()
    return process.exitcode, seconds


def names(out):
    """Names of all that is below a folder."""
    return {str(path.relative_to(out)) for path in out.rglob("*")}


def check_whole(out):
    """Assert that every file that has its own name is whole."""
    for path in [path for path in out.rglob("*") if path.is_file()]:
        if any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".safetensors":
                load_file(path)
            case ".png" | ".gif":
                Image.open(path).load()
            case ".npz":
                np.load(path)
            case ".md" | ".html" | ".svg":
                assert path.read_text().rstrip().endswith(("</html>", "</svg>")) or path.suffix == ".md"
            case ".jsonl":
                assert all(json.loads(line) for line in path.read_text().splitlines()[:-1])
            case _:
                raise AssertionError(f"an unknown file: {path}")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_stopped_at_any_moment_leaves_whole_files_and_no_litter(command, tmp_path):
    chance = random.Random(command)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    torch.manual_seed(0)
    model = models.build((1, 8, 8), network=TINY[1])
    for parameter in model.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    def place(name):
        folder = tmp_path / name
        (folder / "pictures").mkdir(parents=True)
        for k, image in enumerate(pixels):
            Image.fromarray(image).save(folder / "pictures" / f"{k}.png")
        models.save(folder / "model", model)
        return folder

    words = COMMANDS[command]
    whole = place("whole")
    status, seconds = run(whole, words)
    assert status == 0, (whole / "said").read_text()
    # An interrupt of reproduce is in tests/test_cli.py, which saves a third of a slow test.
    for attempt, number in enumerate((signal.SIGKILL, signal.SIGINT)[: 1 + (command != "reproduce")]):
        folder = place(str(attempt))
        status, _ = run(folder, words, number, chance.uniform(0, seconds))
        said, out = (folder / "said").read_text(), folder / "out"
        check_whole(out)
        if status == 130:
            assert not any(re.search(r"\.[0-9a-f]{32}", name) for name in names(folder)), "an interrupt sweeps its own"
            assert ("nothing was written" not in said) or not any(path.is_file() for path in out.rglob("*"))
            assert ("same command again to go on" in said) == (command in ("train", "reflow", "reproduce"))
        else:
            assert status in (0, -9)
        status, _ = run(folder, words)
        assert status == 0, (folder / "said").read_text()
        check_whole(out)
        assert names(out) == names(whole / "out")
        for path in [path for path in names(out) if path.endswith("model.safetensors")]:
            found, wanted = load_file(out / path), load_file(whole / "out" / path)
            assert all(torch.equal(found[name], wanted[name]) for name in wanted), path


def left(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("x")
    return folder / name


def test_only_what_dead_processes_left_is_swept(tmp_path):
    here, dead = files._here(), 2**22 + 1  # above the largest number of a process
    own = left(tmp_path, f".a.{here}{os.getpid():08x}{'0' * 16}.npz")
    killed = left(tmp_path, f".a.{here}{dead:08x}{'0' * 16}.npz")
    bare = left(tmp_path, f".probe.{here}{dead:08x}{'0' * 16}")
    afar = left(tmp_path, f".a.{int(here, 16) ^ 1:08x}{dead:08x}{'0' * 16}.npz")
    deep = left(tmp_path, f"best/.a.{here}{dead:08x}{'0' * 16}.json")
    others = [left(tmp_path, name) for name in (".a.npz", "a.npz", f"a.{here}{dead:08x}{'0' * 16}.npz", ".git")]
    checkpoint = left(tmp_path, "checkpoints/.step-00000002/state")
    writable_folder(tmp_path)
    assert not killed.exists()
    assert not bare.exists()
    assert all(path.exists() for path in (own, afar, deep, checkpoint, *others))
    sweep(tmp_path, owned=True)
    assert not any(path.exists() for path in (afar, deep, checkpoint))
    assert all(path.exists() for path in (own, *others))


def test_what_json_cannot_hold_is_refused_in_a_sentence(tmp_path):
    for value in (float("nan"), object()):
        with pytest.raises(files.OutputError, match="JSON cannot hold"):
            write_json(tmp_path / "a.json", {"x": value})
    (tmp_path / "b.json").write_text('{"x": NaN}')
    with pytest.raises(files.CheckpointError, match="has NaN, which is no number of JSON"):
        files.read_json(tmp_path / "b.json")
