"""What a training takes, counted before it begins, against what it then takes."""

import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from proxflow import GPFN, PointPredictor, TrainingConfig
from proxflow.cli import main
from proxflow.nn import DiT, UNet
from proxflow.training.cost import cost


@pytest.mark.parametrize(
    "network", [UNet((3, 16, 16), channels=16, patch=2), DiT((3, 16, 16), width=32, depth=2, heads=2, reads_end=True)]
)
def test_operations_and_activations_are_those_of_a_step(network):
    predictor = PointPredictor(network, GPFN(), parameterisation="x")
    found = cost(predictor, (3, 16, 16), TrainingConfig(batch_size=8), 3 * 256)
    own, kept = {p.data_ptr() for p in network.parameters()}, {}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    # Of the processor's own attention kernel torch counts no operations.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(torch.randn(8, 3, 16, 16), torch.rand(8))
        output.sum().backward()
    assert found.operations == pytest.approx(counter.get_total_flops(), rel=0.15)
    assert found.activations == pytest.approx(sum(size for size, _ in kept.values()), rel=0.15)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert found.kept == 20 * found.parameters
    assert found.read == 8 * 3 * 256
    config = TrainingConfig(batch_size=8, accumulate=2, parallel="fsdp")
    shared = cost(predictor, (3, 16, 16), config, 3 * 256, processes=2, bf16=True)
    assert shared.activations == found.activations / 8
    assert shared.kept == found.kept / 2


def test_a_dry_run_says_it_and_writes_nothing(tmp_path, capsys):
    assert main(["train", "--data", "emoji", "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "dry run: 706,572 parameters; " in said
    assert re.search(r"[\d.]+ MB for activations in float32, half of it with --precision bf16", said)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_networks_of_tokens_and_of_tables(tmp_path, capsys):
    (tmp_path / "book.txt").write_text("the cat sat on the mat\n" * 99, encoding="utf-8")
    (tmp_path / "t.csv").write_text("a,b\n" + "1.5,x\n2.5,y\n" * 20, encoding="utf-8")
    for words in (["book.txt", "--context", "16"], ["book.txt", "--flow", "gpfn-linear"], ["t.csv"]):
        source, *rest = words
        assert (
            main(["train", "--data", str(tmp_path / source), "--out", str(tmp_path / "run"), *rest, "--dry-run"]) == 0
        )
        said = capsys.readouterr().out
        assert "FLOP a step" in said
        assert "e+" not in said
    assert "takes less than 0.1 ms for these operations" in said
