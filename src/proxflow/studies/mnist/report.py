"""The report of the paper's experiment on MNIST: claims, tables, samples, and beliefs during sampling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from proxflow import models
from proxflow.beliefs import Belief
from proxflow.data import to_bytes
from proxflow.models import Model
from proxflow.samplers import sample
from proxflow.studies import charts, scoreboard
from proxflow.studies.charts import Images, Row, Section
from proxflow.studies.pages import Block, Bullets, Heading, Paragraph, Picture
from proxflow.studies.scoreboard import (
    Claim,
    Floor,
    Measure,
    Record,
    Relation,
    Score,
    Scoreboard,
    dataset_of,
    ratio,
    sample_counts,
)
from proxflow.studies.trials import Cell, kept_images

EVALUATIONS = 20
"""NFE of the headline, the grids and the figures of beliefs."""

_FLOWS: dict[str, str] = {
    "gpfn-w2": "General Proximal Flow Network with Wasserstein-2 steps (arXiv 2603.00751)",
    "gpfn-w2-tuned": "same with the schedule and weights of times chosen for MNIST",
    "bfn": "Bayesian Flow Network with the settings of its reference implementation (arXiv 2308.07037)",
    "bfn-tuned": "Bayesian Flow Network with σ₁ and parameterisation chosen for MNIST",
}
_SAMPLERS: dict[str, str] = {
    "deterministic": "the proximal step with the predicted target itself as message",
    "stochastic": "the proximal step with a noisy draw around the predicted target, as Bayesian Flow Networks have it",
    "marginal": "replaces noise and keeps the distribution that beliefs have in training (ancestral sampling)",
    "multistep2": "of second order: uses the last two predictions, at one evaluation a step",
    "unipc": "of second order with a corrector, which uses each new prediction for the step before as well",
    "sde-bfn-solver2": "of second order with fresh noise in each step, which mends errors of earlier steps",
}
# Of Okabe and Ito's colours, which are distinguishable with any colour vision.
_COLOURS = {"gpfn-w2": "#0072B2", "gpfn-w2-tuned": "#56B4E9", "bfn": "#D55E00", "bfn-tuned": "#009E73"}
_RATIO_THRESHOLDS = {"quick": 5.0, "standard": 8.0, "paper": 22.0}
_PAPERS_RATIO = 22.6
"""Ratio of BFN to GPFN-W2, each with its own sampler, as reported by the paper on MNIST."""

_BESIDE_REAL: tuple[tuple[Score, Floor, str, Relation, float], ...] = (
    ("frechet", "floor", "Fréchet distance", "≤", 1.3),
    ("second_frechet", "second_floor", "Fréchet distance on the second extractor", "≤", 1.3),
    ("precision", "floor_precision", "Precision", "≥", 0.95),
    ("recall", "floor_recall", "Recall", "≥", 0.95),
    ("second_precision", "second_floor_precision", "Precision on the second extractor", "≥", 0.95),
    ("second_recall", "second_floor_recall", "Recall on the second extractor", "≥", 0.95),
)
"""Scores of samples relative to as many real images, with the expected thresholds."""


def claims(results: Record) -> list[Claim]:
    """Measure the claims of the experiment; return those whose cells exist."""
    board, preset, found = Scoreboard.of(results), results["config"]["preset"], list[Claim]()

    def one(flow: str, sampler: str, nfe: int, score: Score = "frechet") -> Measure:
        return lambda seed: board.one(flow, sampler, nfe, seed, score)

    def largest(measures: list[Measure]) -> Measure:
        return lambda seed: max((v for measure in measures if (v := measure(seed)) is not None), default=None)

    at = f"{EVALUATIONS} NFE"
    bfn, default = one("bfn", "stochastic", EVALUATIONS), one("gpfn-w2", "multistep2", EVALUATIONS)
    found += board.claim(
        "advantage",
        "Fréchet distance of bfn (stochastic, its own sampler) over that of gpfn-w2 (multistep2, the default sampler), "
        + at,
        _over(bfn, default),
        "≥",
        _RATIO_THRESHOLDS.get(preset),
    )
    plain = _over(bfn, one("gpfn-w2", "deterministic", EVALUATIONS))
    statement, least = f"The same with gpfn-w2 deterministic, {at}", None
    if preset == "long":
        each = "bfn (stochastic) over that of gpfn-w2 (deterministic), each with its own sampler"
        statement, least = f"Fréchet distance of {each}, {at}; {_PAPERS_RATIO} in the paper", _PAPERS_RATIO
    found += board.claim("advantage-deterministic", statement, plain, "≥", least)
    tuned = f"Fréchet distance of bfn-tuned (stochastic) over that of gpfn-w2 (multistep2), {at}"
    found += board.claim(
        "advantage-tuned", tuned, _over(one("bfn-tuned", "stochastic", EVALUATIONS), default), "≥", None
    )
    collapsed = largest([one("bfn", "deterministic", nfe, "diversity") for nfe in board.nfes])
    found += board.claim(
        "collapse", "Largest diversity of bfn without noise (deterministic), any NFE", collapsed, "<", 0.02
    )
    diverse = one("gpfn-w2", "deterministic", EVALUATIONS, "diversity")
    least = None if preset == "quick" else 0.85
    found += board.claim("diversity", f"Diversity of gpfn-w2 without noise (deterministic), {at}", diverse, ">", least)
    noisy = "Largest Fréchet distance of gpfn-w2 stochastic over deterministic, at equal NFE from 10 up"
    pairs = [[one("gpfn-w2", kind, nfe) for kind in ("stochastic", "deterministic")] for nfe in board.nfes if nfe >= 10]
    found += board.claim("noise", noisy, largest([_over(*pair) for pair in pairs]), "≤", 1.3)
    multistep = _over(one("gpfn-w2", "multistep2", 5), one("gpfn-w2", "deterministic", 10))
    statement = "Fréchet distance of gpfn-w2 with multistep2 at 5 NFE over deterministic at 10 NFE"
    found += board.claim("multistep", statement, multistep, "<", 1.0)
    if _both_tuned(board):
        found += _at_their_best(board)
    return found


def _both_tuned(board: Scoreboard) -> bool:
    return {"gpfn-w2-tuned", "bfn-tuned"} <= {*board.flows}


def _over(above: Measure, below: Measure) -> Measure:
    return lambda seed: ratio(above(seed), below(seed))


def _at_their_best(board: Scoreboard) -> list[Claim]:
    """Compare the best of both families, and the best of all with real images."""
    found = list[Claim]()
    for nfe in (nfe for nfe in board.nfes if nfe > 1):
        ours, theirs = (
            board.best([row for row in board.rows if row[0].startswith(family)], nfe) for family in ("gpfn-w2", "bfn")
        )
        found += board.claim(
            f"lead-{nfe}",
            f"Fréchet distance of the best gpfn-w2, {_named(ours)}, over that of the best bfn, {_named(theirs)}, {nfe} NFE",
            _over(partial(board.one, *ours, nfe), partial(board.one, *theirs, nfe)),
            "<",
            1.0,
        )
    if EVALUATIONS in board.nfes:
        best = board.best(board.rows, EVALUATIONS)
        of = partial(board.one, *best, EVALUATIONS)
        for score, floor, what, relation, threshold in _BESIDE_REAL:
            found += board.claim(
                f"real-{score}",
                f"{what} of the best of all, {_named(best)}, over that of real images, {EVALUATIONS} NFE",
                _over(partial(of, score=score), partial(of, score=floor)),
                relation,
                threshold,
            )
    return found


def _named(row: tuple[str, str]) -> str:
    return f"{row[0]} ({row[1]})"


def _who_leads(found: list[Claim]) -> str:
    """Say at which numbers of evaluations the best gpfn-w2 is better than the best bfn; empty without both."""
    leads = {claim.name.removeprefix("lead-"): claim for claim in found if claim.name.startswith("lead-")}
    if not leads:
        return ""
    ahead = [nfe for nfe, claim in leads.items() if claim.holds]
    behind = [nfe for nfe, claim in leads.items() if not claim.held]
    mixed = [nfe for nfe in leads if nfe not in (*ahead, *behind)]
    parts = [
        f"{words} at {scoreboard.listed(nfes)}"
        for words, nfes in (("in every seed", ahead), ("in some seeds", mixed), ("in none", behind))
        if nfes
    ]
    return f" The best gpfn-w2 is ahead of the best bfn, by network evaluations: {'; '.join(parts)}."


def outcome(results: Record) -> list[Block]:
    """Return the claims with the measured values."""
    found = claims(results)
    return [scoreboard.claims_table(found)] if found else []


# Text ---------------------------------------------------------------------------------------------------------------


def _opening(results: Record, board: Scoreboard) -> list[Block]:
    """Return what was compared, and the outcome."""
    training, decided = results["config"]["training"], [claim for claim in claims(results) if claim.holds is not None]
    flows = " ".join(f"{flow} is the {_FLOWS[flow]}." for flow in board.flows)
    if _both_tuned(board) and dataset_of(results) != "MNIST":
        flows += f" Nothing was chosen for {dataset_of(results)}."
    if "bfn-tuned" not in board.flows:
        flows += (
            " The preset standard also has bfn-tuned, a Bayesian Flow Network with settings chosen for MNIST, which is "
            "better than gpfn-w2 from 10 NFE up."
        )
    words = (
        f"{flows} All were trained on the same images of {dataset_of(results)}, with the same network, for "
        f"{training['steps']:,} steps of {training['batch_size']} images, and then sampled with equal numbers "
        "of network evaluations (NFE). "
        f"Claims that hold: {sum(bool(claim.holds) for claim in decided)} of {len(decided)}.{_who_leads(decided)}"
    )
    return [Paragraph(words), *outcome(results)]


def _reading(board: Scoreboard) -> Bullets:
    """Return explanations of terms and numbers."""
    items = [f"{sampler}: {_SAMPLERS[sampler]}." for sampler in dict.fromkeys(sampler for _, sampler in board.rows)]
    items += [
        """NFE counts every evaluation of the network for one sample, the last one included; the prediction of the last
        evaluation is the sample. The reference sampler of Bayesian Flow Networks spends n + 1 evaluations on n updates, and
        is counted so: at NFE k, bfn and bfn-tuned make k − 1 updates and a last prediction. A gpfn flow at NFE k makes k
        steps, of which the last one lands on its prediction.""",
        """Fréchet distance compares features of samples with those of the reference; lower is better. It is biased upwards
        with few samples, so numbers compare only at equal counts and on the same features. The row of real images scores as
        many training images, which is what a perfect model would reach. The lowest numbers of a column are bold.""",
        """Precision is the share of samples that look like real images, recall the share of real images that look like
        samples, diversity the mean distance between samples over that between real images: 1 as diverse, 0 all the same.""",
    ]
    if len(board.seeds) > 1:
        items.append(
            """Numbers are means over the seeds, with the lowest and the highest in brackets. A claim holds when it does in
            every seed; pictures are of the first."""
        )
    return Bullets(tuple(items))


# Pictures -----------------------------------------------------------------------------------------------------------

_STRIP_SAMPLES, _STRIP_COLUMNS, _ANIMATED = 3, 10, 16


def _chart(out: Path, board: Scoreboard, dataset: str) -> Picture:
    return charts.write_chart(
        out / "frechet-against-nfe.png",
        charts.lines_of(board),
        board.floor(),
        f"{dataset}: quality of samples against their cost",
        _COLOURS,
        "Line chart of Fréchet distance against NFE for each flow and sampler; the numbers are in the table below",
        f"Fréchet distance of {sample_counts(board)} samples against network evaluations, both axes logarithmic. The "
        "dashed line is the distance of as many real images.",
    )


def _samples(out: Path, board: Scoreboard, seed: int) -> Picture:
    def block(flow: str, sampler: str, nfe: int) -> Images | None:
        if board.one(flow, sampler, nfe, seed) is None:
            return None
        return charts.tile(kept_images(out, Cell(flow, sampler, nfe, seed))[:16], 4, 48)

    def row(flow: str, sampler: str) -> Row:
        return Row(sampler, tuple(block(flow, sampler, nfe) for nfe in board.nfes))

    columns = tuple(f"{nfe} NFE" for nfe in board.nfes)
    return charts.write_grids(
        out / "samples.png",
        [Section(flow, columns, tuple(row(*of) for of in board.rows if of[0] == flow)) for flow in board.flows],
        26,
        "Grids of sixteen samples, a row for each flow and sampler, a column for each NFE",
        f"The first sixteen samples of each entry, seed {seed}, none chosen.",
    )


def _grids(out: Path, board: Scoreboard, seed: int) -> list[Picture]:
    grids = []
    for flow in board.flows:
        nfe = board.nearest_nfe(flow, EVALUATIONS)
        sampler = board.best_sampler(flow, nfe)
        if board.one(flow, sampler, nfe, seed) is None:
            continue
        images = kept_images(out, Cell(flow, sampler, nfe, seed))
        section = Section("", (f"{flow}, {sampler}, {nfe} NFE",), (Row("", (charts.tile(images, 8, 56),)),))
        best = f"{flow} at {nfe} NFE with its best sampler there, {sampler}"
        caption = f"{best}: the first {len(images)} samples, none chosen."
        shown = f"Grid of {len(images)} samples of {flow}"
        grids.append(charts.write_grids(out / f"grid-{flow}.png", [section], 20, shown, caption))
    return grids


def _own_sampler(flow: str) -> str:
    """Return the sampler that a flow was published with."""
    return "deterministic" if flow.startswith("gpfn") else "stochastic"


def _strip(flow: str, evolution: Evolution) -> Section:
    """Return rows of beliefs and predictions, for a few samples, at evenly spaced evaluations from first to last."""
    last = len(evolution.times) - 1
    columns = [round(k * last / (_STRIP_COLUMNS - 1)) for k in range(_STRIP_COLUMNS)]
    both = (("belief mean", evolution.beliefs), ("predicted target", evolution.targets))
    rows = []
    for example in range(_STRIP_SAMPLES):
        for label, history in both:
            tiles = tuple(charts.tile(history[k, example, None], 1, 72) for k in columns)
            rows.append(Row(label, tiles, apart=example > 0 and history is evolution.beliefs))
    return Section(
        f"{flow}, {_own_sampler(flow)}", tuple(f"t = {evolution.times[k]:.2f}" for k in columns), tuple(rows)
    )


def _frame(evolutions: dict[str, Evolution], k: int) -> Section:
    """Return all beliefs and predictions at evaluation ``k``, for all flows."""
    return Section(
        f"NFE {k + 1} of {EVALUATIONS}",
        tuple(f"{flow}, {_own_sampler(flow)}" for flow in evolutions),
        (
            Row("belief mean", tuple(charts.tile(e.beliefs[k], 4, 56) for e in evolutions.values())),
            Row("predicted target", tuple(charts.tile(e.targets[k], 4, 56) for e in evolutions.values())),
        ),
    )


def _beliefs(out: Path, evolutions: dict[str, Evolution]) -> list[Picture]:
    animation = "beliefs.gif"
    frames = [charts.labelled([_frame(evolutions, k)], 18) for k in range(EVALUATIONS)]
    charts.write_animation(out / animation, frames, milliseconds=250, pause=2500)
    return [
        Picture(
            animation,
            "Animation of sixteen beliefs of each flow and of what the network predicts from them",
            f"A sampling run of {EVALUATIONS} evaluations. Above, the means of the beliefs, which are what the network "
            "reads; below, the targets that it predicts from them. The last prediction is the sample.",
        ),
        charts.write_grids(
            out / "beliefs.png",
            [_strip(flow, evolution) for flow, evolution in evolutions.items()],
            20,
            "Beliefs and predicted targets of each flow, one above the other, from the first evaluation to the last",
            f"The first {_STRIP_SAMPLES} samples of the same run, at some of its evaluations, from the first to the last. "
            "Values beyond black and white are cut off.",
        ),
    ]


@dataclass(frozen=True)
class Evolution:
    """The history of a few beliefs in one sampling run.

    Args:
        times: Time of each evaluation, T of them.
        beliefs: Mean of the belief at each evaluation, the network's input, (T, N, H, W).
        targets: The network's prediction, (T, N, H, W); the last are the samples.
    """

    times: tuple[float, ...]
    beliefs: Images
    targets: Images


def evolve(model: Model, sampler: str, count: int, nfe: int, seed: int) -> Evolution:
    """Sample, and record belief and prediction of each evaluation.

    Args:
        model: A trained model.
        sampler: Name of the sampler.
        count: Number of samples.
        nfe: Network evaluations.
        seed: Seed of the samples.
    """
    seen: list[tuple[float, Images, Images]] = []

    def watch(time: float, belief: Belief, target: Belief) -> None:
        mean, predicted = (to_bytes(b.mean[:count, 0]).cpu().numpy() for b in (belief, target))
        seen.append((time, mean, predicted))

    shape = (count, *model.shape)
    sample(model.predictor, model.flow, shape, nfe=nfe, sampler=sampler, seed=seed, batch_size=count, watch=watch)
    times, beliefs, targets = zip(*seen, strict=True)
    return Evolution(times, np.stack(beliefs), np.stack(targets))


def pages(out: Path, results: Record, device: torch.device) -> list[Block]:
    """Write the figures of the experiment into its folder; return its report."""
    board, dataset = Scoreboard.of(results), dataset_of(results)
    seed = board.seeds[0]
    trained = {flow: models.load(out / "models" / f"{flow}-seed{seed}", device) for flow in board.flows}
    evolutions = {flow: evolve(m, _own_sampler(flow), _ANIMATED, EVALUATIONS, seed) for flow, m in trained.items()}
    parameters = sum(p.numel() for p in trained[board.flows[0]].predictor.parameters())
    return [
        Heading(1, f"General Proximal Flow Networks against Bayesian Flow Networks on {dataset}"),
        *_opening(results, board),
        Heading(2, "Fréchet distance against evaluations"),
        _chart(out, board, dataset),
        scoreboard.frechet_table(board),
        *scoreboard.on_second(results, board),
        Heading(2, "Samples"),
        _samples(out, board, seed),
        *_grids(out, board, seed),
        Heading(2, "From beliefs to samples"),
        *_beliefs(out, evolutions),
        Heading(2, "Precision, recall and diversity"),
        scoreboard.quality_table(board, (5, EVALUATIONS, 100)),
        Heading(2, "How to read this"),
        _reading(board),
        Heading(2, "Conditions"),
        scoreboard.conditions(results, parameters),
    ]
