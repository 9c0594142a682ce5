"""The recipes: each command parses, takes what the page says, and fits into the device that it names."""

import copy
import re
import subprocess
from pathlib import Path

import pytest
import torch
from test_docs import commands_of

import proxflow
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

TWO_STEPS = proxflow.TrainingConfig(steps=2, batch_size=8)


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


def adapters():
    """Run the page's classes for networks of diffusers, and return what they define."""
    text = PAGE.read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"^```text\n(.*?)^```", text, re.S | re.M) if "class FromUNet" in block)
    found = {"torch": torch}
    exec(code, found)  # noqa: S102 - the page's own lines
    return found


def test_a_unet_of_diffusers_is_a_network():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4, block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    network = adapters()["FromUNet"](unet)
    images, flow = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8), proxflow.GPFN()
    trained = proxflow.fit(proxflow.PointPredictor(network, flow), flow, images, TWO_STEPS).predictor
    drawn = proxflow.sample(trained, flow, (3, 3, 8, 8), nfe=2, seed=1)
    assert drawn.isfinite().all()
    early, late = (network(torch.zeros(1, 3, 8, 8), torch.tensor(t)) for t in (0.1, 0.9))
    assert (early - late).abs().max() > 1e-4  # it reads the time


def test_a_transformer_of_diffusers_is_a_network_that_reads_classes_and_is_guided():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, num_layers=1, sample_size=8, num_embeds_ada_norm=4,
        norm_num_groups=1,
    )  # fmt: skip
    network = adapters()["FromDiT"](transformer)
    images, flow = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8), proxflow.GPFN()
    data = proxflow.Examples(images, torch.arange(16) % 5 - 1)  # some have no class
    trained = [
        proxflow.fit(proxflow.PointPredictor(copy.deepcopy(network), flow), flow, data, TWO_STEPS).predictor
        for _ in range(2)
    ]
    drawn = [
        proxflow.sample(predictor, flow, (3, 3, 8, 8), nfe=2, seed=1, condition=torch.tensor([0, 3, 3]))
        for predictor in (*trained, proxflow.Guided(trained[0], 2.0))
    ]
    assert torch.equal(drawn[0], drawn[1])  # the classes that it withholds follow from the seed
    assert not torch.equal(drawn[0], drawn[2])
    network.eval()
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([0.5])
    without, none, one, other = (network(x, t, k) for k in (None, *torch.tensor([[-1], [0], [3]])))
    assert torch.equal(without, none)
    assert min((without - one).abs().max(), (one - other).abs().max()) > 1e-5
