"""The text study: its judge, its baseline, matched schedules, and the whole at a tiny size."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

from proxflow.divergences import FisherRao, ReverseKL
from proxflow.flows import DiscreteBFN, Masked
from proxflow.studies import trials
from proxflow.studies.presets import EXPERIMENTS, TEXT_PRESETS
from proxflow.studies.text.baseline import Autoregressive
from proxflow.studies.text.judge import NGrams, entropy, word_share
from proxflow.studies.text.study import capacity, masked_as, matched


def test_the_judge_is_witten_bell_written_out():
    text = "abracadabra abracadabra"
    symbols = sorted(set(text))
    rows = torch.tensor([symbols.index(c) for c in text])
    judge = NGrams(rows, len(symbols), order=2)

    def chance(context, c):
        if context is None:
            return 1 / len(symbols)
        follows = Counter(
            text[k + len(context)] for k in range(len(text) - len(context)) if text[k:].startswith(context)
        )
        shorter = chance(context[1:] if context else None, c)
        total, kinds = sum(follows.values()), len(follows)
        return (follows[c] + kinds * shorter) / (total + kinds) if total else shorter

    asked = "cab"
    wanted = -sum(math.log2(chance(asked[max(0, k - 2) : k], asked[k])) for k in range(3)) / 3
    assert judge.bits(torch.tensor([[symbols.index(c) for c in asked]])) == pytest.approx(wanted, rel=1e-12)


def test_what_is_counted_in_texts():
    assert entropy(torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]])) == pytest.approx(1.0)
    assert word_share(["xx the lord sayeth xx", "x heaven x"], frozenset({"the", "heaven", "xx"})) == pytest.approx(0.5)


def test_matched_schedules_have_the_capacity_that_they_are_matched_to():
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    for divergence in (ReverseKL(), FisherRao()):
        found = capacity(matched(divergence, 9), t)
        assert torch.allclose(found, t * math.log(9), atol=0.06)
    bfn = DiscreteBFN(9, 1.0)
    assert torch.allclose(capacity(masked_as(bfn), t), capacity(bfn, t), atol=0.02)
    assert torch.allclose(capacity(Masked(9), t), t * math.log(9))


def test_the_baseline_sums_to_one_and_draws_its_law():
    torch.manual_seed(0)
    table = torch.randn(4, 3, 3)  # logits by place and the token before, none as 0

    class Network(torch.nn.Module):
        def forward(self, x, t):
            return table[torch.arange(x.shape[1]), x + 1 if x.max() < 2 else x.clamp_min(0)]

    model = Autoregressive(Network())
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)

    class Fixed(torch.nn.Module):
        def forward(self, x, t):
            return table[torch.arange(x.shape[1]), x.clamp_min(0)]

    model = Autoregressive(Fixed())
    law = (-model.negative_log_likelihood(every)).exp()
    assert float(law.sum()) == pytest.approx(1, abs=1e-6)
    drawn = model.sample(4000, 3, seed=0)
    share = (drawn[:, None] == every).all(-1).double().mean(0)
    assert float((share - law).abs().max()) < 0.03


def test_the_whole_study_at_a_tiny_size(tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("in the beginning was the word and the word was with god " * 400, encoding="utf-8")
    preset = TEXT_PRESETS["quick"]
    preset = replace(
        preset, network="transformer:width=8,depth=1,heads=1", samples=3, windows=4, draws=2, nfes=(1, 3), context=16,
        flows=("masked", "autoregressive", "bfn", "fisher-rao-as-masked"),
        training=replace(preset.training, steps=2, batch_size=4, checkpoint_every=2),
    )  # fmt: skip
    said = []
    study, cpu = trials.find("text"), torch.device("cpu")
    results = trials.reproduce(study, "quick", preset, tmp_path / "run", cpu, said.append, str(text), processes=2)
    assert any("on 2 processes side by side" in line for line in said)
    keys = {
        "flow", "seed", "nfe", "bits_per_character", "bound", "sample_bits", "sample_entropy", "word_share", "parameters",
        "examples",
    }  # fmt: skip
    assert all(keys <= set(row) for row in results["rows"])
    assert {row["flow"] for row in results["rows"]} == set(preset.flows)
    assert len({row["parameters"] for row in results["rows"]}) == 1
    assert {row["bound"] for row in results["rows"] if row["flow"] == "autoregressive"} == {"exact"}
    assert results == json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    written = trials.write_report(tmp_path / "run", cpu)
    assert "fisher-rao-as-masked" in written[0].read_text(encoding="utf-8")
    said.clear()
    again = trials.reproduce(study, "quick", preset, tmp_path / "run", cpu, said.append, str(text))
    assert again == results
    assert len(said) == 1  # what is read; nothing is done again

    # In one process, on a copy without one flow: that flow is made once more, and is the same.
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    (copy / "results.json").unlink()
    shutil.rmtree(copy / "models" / "bfn-seed0")
    for path in (*copy.glob("cells/bfn-*"), copy / "bounds" / "bfn-seed0.json"):
        path.unlink()
    once_more = trials.reproduce(study, "quick", preset, copy, cpu, said.append, str(text))

    def without_times(rows):
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    assert without_times(once_more["rows"]) == without_times(results["rows"])
    assert once_more["texts"] == results["texts"]
    assert EXPERIMENTS["text"] is TEXT_PRESETS
