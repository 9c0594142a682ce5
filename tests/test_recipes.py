"""The recipes: each command parses, takes what the page says, and fits into the device that it names."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from test_docs import commands_of

from proxflow.cli import train
from proxflow.cli.run import _parse
from proxflow.data.kinds.image import Image
from proxflow.data.kinds.latents import Latents
from proxflow.training.cost import H100, MEMORY, SHARE, cost

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"

CIFAR, SMALL = Image((3, 32, 32), 10), Image((3, 64, 64), 1000)
LATENTS = Latents((4, 32, 32), (0.0,) * 4, (1.0,) * 4, (3, 256, 256), "", "", 1000)
RUNS = {
    "runs/cifar": ("CIFAR-10, one GPU", 1, CIFAR),
    "runs/cifar-ddpmpp": ("CIFAR-10 with the network of DDPM++", 8, CIFAR),
    "runs/imagenet-64": ("ImageNet-64", 8, SMALL),
    "runs/latents-b": ("ImageNet-256 latents, DiT-B/2", 16, LATENTS),
    "runs/latents-xl": ("ImageNet-256 latents, DiT-XL/2", 32, LATENTS),
}
"""Row, devices and data of each large recipe, by its folder."""


def recipes():
    """Options by folder."""
    text = PAGE.read_text(encoding="utf-8")
    parsed = [_parse(words) for words in commands_of(text) if "--out" in words]
    return {str(options.out): options for options in parsed if isinstance(options, train.Train)}


def test_every_recipe_is_checked():
    assert set(recipes()) - {"runs/emoji", "runs/latents"} == set(RUNS)


@pytest.mark.parametrize("folder", RUNS)
def test_a_recipe_takes_what_the_page_says_and_fits(folder):
    row, devices, kind = RUNS[folder]
    options = recipes()[folder]
    with torch.device("meta"):
        model = train._untrained(options, kind)
    config = options.training.checked()
    bytes_of = (2 if kind is LATENTS else 1) * torch.Size(kind.shape).numel()
    found = cost(model.predictor, model.shape, config, bytes_of, devices, bf16=True)
    assert found.memory < 0.8 * MEMORY
    assert "fits into the 80 GB of an H100" in found.text
    (line,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {row}"))
    assert f"{config.batch_size} pictures" in line
    seconds = found.operations / (H100 * SHARE) / devices
    assert re.split(r" *\| *", line)[2:6] == [
        f"{found.parameters / 1e6:.1f} M",
        f"{found.operations / 1e12:.3g} TFLOP, {seconds * 1e3:.0f} ms",
        f"{found.kept / 1e9:.1f} + {found.activations / 1e9:.1f} GB",
        f"{found.read / seconds / 1e6:.0f} MB/s",
    ]


def test_the_slurm_file_is_a_script():
    text = PAGE.read_text(encoding="utf-8")
    (script,) = (block for block in re.findall(r"^```text\n(.*?)^```", text, re.S | re.M) if block.startswith("#!"))
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, timeout=60).stderr == ""
    done = subprocess.run(["bash", "-c", script, "latents.slurm", "C"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.endswith("expected B or XL\n")
    stubs = 'srun() { echo "$@"; }\nscontrol() { echo node1; echo node2; }\nSLURM_NNODES=4\nSLURM_JOB_ID=7\n'
    done = subprocess.run(
        ["bash", "-c", stubs + script, "latents.slurm", "XL"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith(
        "torchrun --nnodes 4 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint node1:29400 "
        "--rdzv-id 7 -m proxflow.cli train --out runs/latents-xl"
    )
