"""Words and JSON values: what is said is what is built, what is built can be said, and nothing is taken and ignored."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import proxflow
from proxflow import (
    BFN,
    GPFN,
    KL,
    Alpha,
    Bregman,
    CategoricalEndpoints,
    CoordinateMetric,
    Cosine,
    Diffusion,
    DiscreteBFN,
    DiscreteWasserstein2,
    DiscretisedBFN,
    FisherRao,
    FrequencyMetric,
    GaussianEndpoints,
    Linear,
    MinibatchOT,
    NewtonSolver,
    PerPart,
    PointPredictor,
    Potential,
    ProductEndpoints,
    Readout,
    SinkhornDivergence,
    TargetEnergy,
    Wasserstein2,
    names,
)
from proxflow.errors import ArgumentError, CheckpointError
from proxflow.models import Part, describe, parse, restore, spec, word
from proxflow.paths import Shifted
from proxflow.samplers import SAMPLERS, BFNSolver, Marginal, Multistep

OBJECTS = {
    "flows": [
        GPFN(),
        GPFN(KL(), Linear(0.6), coupling=MinibatchOT()),
        GPFN(Wasserstein2(FrequencyMetric(8, 8, 0.5)), Cosine(), GaussianEndpoints(0.1), weight_floor=0.5),
        GPFN(Alpha(0.5), solver=NewtonSolver(1e-6), simulated_steps=3),
        GPFN(
            PerPart((Wasserstein2(), FisherRao())),
            endpoints=ProductEndpoints(((GaussianEndpoints(), 2), (CategoricalEndpoints(5), 1))),
        ),
        BFN(0.3, Readout(16, density_below=1e-5)),
        DiscretisedBFN(16),
        DiscreteBFN(27, 2.0),
        Diffusion(weight_floor=0.4),
        Diffusion(Linear()),
    ],
    "divergences": [Wasserstein2(CoordinateMetric((1.0, 2.0))), Alpha(-0.5)],
    "schedules": [Shifted((0.5, 1.0, -0.25)), Cosine()],
    "samplers": [*SAMPLERS.values(), Multistep(4), Marginal(0.5), BFNSolver(2, 0.5)],
}
EACH = [(group, thing) for group, things in OBJECTS.items() for thing in things]


@pytest.mark.parametrize(("group", "thing"), EACH, ids=[str(thing)[:60] for _, thing in EACH])
def test_files_and_words_give_back_what_they_were_made_of(group, thing):
    content = json.loads(json.dumps(describe(thing), allow_nan=False))
    assert restore(group, content, "file") == thing
    assert parse(group, word(thing)) == thing


@pytest.mark.parametrize(
    "group", ["divergences", "flows", "samplers", "networks", "predictors", "schedules", "couplings"]
)
def test_every_name_without_required_settings_is_built_and_described(group):
    for name in names.BUILT_IN[group]:
        if not any(field.default is spec._REQUIRED for field in spec.fields(group, name).values()):
            thing = parse(group, name)
            assert (
                restore(group, describe(thing), "file") == thing or group == "divergences"
            )  # tensors compare by identity
            if names.BUILT_IN[group][name].chosen:  # so that files state what was chosen when they were written
                assert word(thing) != name
                assert parse(group, word(thing)) == thing
            else:
                assert word(thing) == name or name in ("gpfn", "gpfn-linear")


def test_samplers_by_name_are_those_of_the_registry():
    assert {name: parse("samplers", name) for name in names.BUILT_IN["samplers"]} == SAMPLERS


def test_words_say_what_python_says():
    assert parse("flows", "gpfn-kl:schedule=linear:final=0.6,coupling=ot") == GPFN(
        KL(), Linear(0.6), coupling=MinibatchOT()
    )
    assert parse("flows", "gpfn:divergence=w2:metric=(frequency:height=4,width=6)").divergence == Wasserstein2(
        FrequencyMetric(4, 6)
    )
    assert parse("flows", "bfn-tuned") == BFN(**names.TUNED["bfn"])
    # What is written down keeps its meaning where another version chooses otherwise.
    assert word(BFN(**names.TUNED["bfn"])) == f"bfn:sigma1={names.TUNED['bfn']['sigma1']}"
    assert word(parse("flows", "gpfn-w2-tuned")).startswith("gpfn-w2:")
    assert parse("flows", word(parse("flows", "gpfn-w2-tuned"))) == parse("flows", "gpfn-w2-tuned")
    assert parse("flows", "gpfn-w2-tuned:weight_floor=0.5,schedule=linear:final=0.6") == GPFN(
        schedule=Linear(0.6), weight_floor=0.5
    )
    assert parse("flows", "bfn:readout=(bins=16,std=none)") == BFN(readout=Readout(16))
    assert parse("endpoints", "product:parts=(gaussian,2),(categorical:classes=5,1)") == ProductEndpoints(
        ((GaussianEndpoints(), 2), (CategoricalEndpoints(5), 1))
    )
    network = parse("networks", "unet:channels=64,multipliers=1,2,2,patch=1")
    assert (network.kind, network.settings["multipliers"], network.settings["patch"]) == ("unet", (1, 2, 2), 1)
    assert parse("predictors", "point:clip=-2,2,parameterisation=v").settings == {
        "parameterisation": "v",
        "clip": (-2.0, 2.0),
        "clip_in_training": False,
        "mean": None,
        "std": None,
    }
    assert parse("samplers", "marginal:kappa=0.5") == Marginal(0.5)
    assert parse("samplers", "multistep2:order=2,corrected=true") == parse("samplers", "unipc")


def test_brackets_around_a_whole_list_mean_nothing():
    for text in ("-1,1", "(-1,1)", "[-1, 1]"):
        assert parse("predictors", f"point:clip={text}").settings["clip"] == (-1, 1)
    for text in ("1,2", "(1,2)", "[1,2]"):
        assert parse("networks", f"unet:multipliers={text}").settings["multipliers"] == (1, 2)
    assert parse("networks", "unet:multipliers=[]").settings["multipliers"] == ()
    parts = ((GaussianEndpoints(), 2), (CategoricalEndpoints(5), 1))
    for text in ("((gaussian,2),(categorical:classes=5,1))", "[(gaussian,2),(categorical:classes=5,1)]"):
        assert parse("endpoints", f"product:parts={text}") == ProductEndpoints(parts)
    for one in ("[(categorical:classes=5,1)]", "(categorical:classes=5,1)"):
        assert parse("endpoints", f"product:parts={one}") == ProductEndpoints(parts[1:])


def test_tensors_are_lists_of_numbers():
    costs = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    for thing in (SinkhornDivergence(cost=costs), parse("divergences", "sinkhorn:cost=[0,1],[1,0]")):
        again = restore("divergences", json.loads(json.dumps(describe(thing))), "file")
        assert torch.equal(again.cost, costs)
    points = DiscreteWasserstein2(torch.tensor([0.0, 1.0, 5.0]))
    assert parse("divergences", word(points)).points.tolist() == [0, 1, 5]


@pytest.mark.parametrize(
    ("group", "text", "message"),
    [
        ("flows", "bfn:final=0.5,sigma1=0.3", "bfn has no setting 'final': its settings are sigma1, readout"),
        ("flows", "banana", "no flow is called 'banana'"),
        ("predictors", "banana", "no predictor is called 'banana': known are point, long-step"),
        ("couplings", "banana", "no coupling is called 'banana': known are ot, reflow"),
        ("flows", "gpfn:divergence=banana", "no divergence is called 'banana'"),
        ("flows", "gpfn:divergence=alpha", "gpfn: divergence: alpha needs the setting a, as in alpha:a="),
        ("samplers", "multistep2:order=3", "multistep2 fixes order = 2: take multistep3, or leave order out"),
        ("samplers", "unipc:corrected=false", "unipc fixes corrected = true: take multistep2, or leave corrected out"),
        ("samplers", "midpoint:order=2", "midpoint has no setting 'order': it has no settings"),
        ("schedules", "linear:final=2", r"linear: final must lie in \(0, 1\], got 2.0"),
        ("schedules", "linear:final=x", "linear: final must be a finite number, got 'x'"),
        ("schedules", "linear:final=nan", "linear: final must be a finite number, got nan"),
        ("networks", "unet:channels=1.5", "unet: channels must be a whole number, got '1.5'"),
        ("networks", "unet:channels", "expected unet:field=value,field=value…, got 'channels'"),
        ("networks", "unet:channels=1,channels=2", "unet is given channels twice"),
        ("networks", "unet:outputs=3", "unet has no setting 'outputs'"),
        (
            "predictors",
            "point:parameterisation=q",
            "point: parameterisation must be one of x, epsilon, v, edm, got 'q'",
        ),
        ("predictors", "point:clip=1,2,3", r"point: clip must be a list of 2 values, got \[1.0, 2.0, '3'\]"),
        ("predictors", "point:clip_in_training=maybe", "clip_in_training must be true or false, got 'maybe'"),
        ("flows", "gpfn:energy=banana", "gpfn: energy cannot be named or held by a file"),
        (
            "flows",
            "gpfn:coupling=ot,endpoints=categorical:classes=3",
            "gpfn: a coupling pairs real data with the prior",
        ),
    ],
)
def test_what_means_nothing_is_refused_in_a_sentence(group, text, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        parse(group, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("group", "content", "message"),
    [
        ("flows", None, 'expected one of the flows as {"kind": name, …}, got None'),
        ("flows", {"kind": ["gpfn"]}, "expected one of the flows"),
        ("flows", {"kind": "gpfn", "divergence": "kl"}, "gpfn: divergence: expected one of the divergences"),
        ("flows", {"kind": "bfn", "sigma1": "0.3"}, "bfn: sigma1 must be a finite number, got '0.3'"),
        ("flows", {"kind": "bfn", "sigma1": True}, "bfn: sigma1 must be a finite number, got True"),
        ("flows", {"kind": "bfn", "readout": {"bins": 1}}, "bfn: readout: discretised data need at least 2 bins"),
        ("networks", {"kind": "unet", "channels": 8.0}, "unet: channels must be a whole number, got 8.0"),
        ("networks", {"kind": "unet", "multipliers": 3}, "unet: multipliers must be a list"),
        ("networks", {"kind": "os:system"}, "no network is called 'os:system'"),
        ("divergences", {"kind": "mmd", "kernel": [["a"]]}, "mmd: kernel must be an array of numbers"),
        ("divergences", {"kind": "mmd", "_factor": [[1]]}, "mmd has no setting '_factor'"),
    ],
)
def test_files_that_claim_what_cannot_be_are_refused_by_name(group, content, message):
    with pytest.raises(CheckpointError, match=message.replace("{", r"\{")) as caught:
        restore(group, content, "the file")
    assert str(caught.value).startswith("the file: ")


def test_a_file_too_deep_to_read_is_refused():
    content = {"kind": "w2"}
    for _ in range(2000):
        content = {"kind": "per-part", "parts": [content]}
    with pytest.raises(CheckpointError, match="the file: "):
        restore("divergences", content, "the file")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (GPFN, r"^GPFN is a class: give its word, 'gpfn.*', or an object, GPFN\(…\)$"),
        (proxflow.nn.MLP, "^MLP is a class: give its word, 'mlp'$"),
        (
            proxflow.nn.MLP((2,)),
            "^MLP is made by its word, 'mlp' with its settings as mlp:NAME=VALUE, or is trained as it is by",
        ),
    ],
    ids=["flow", "network class", "network"],
)
def test_what_stands_in_the_place_of_a_word_is_told_the_word(given, said):
    with pytest.raises(ArgumentError, match=said):
        describe(given)


def test_functions_cannot_be_written():
    with pytest.raises(
        ArgumentError, match=r"^Linear has no name, so no file can hold it: train it by proxflow.fit\(.*"
    ):
        describe(torch.nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="has no name, so no file can hold it"):
        describe(Bregman(torch.sum))
    with pytest.raises(ArgumentError, match=r"gpfn: energy: TargetEnergy.* has no name, so no file can hold it"):
        describe(GPFN(energy=TargetEnergy(KL()), solver=NewtonSolver()))
    with pytest.raises(ArgumentError, match=r"gpfn: energy: .*has no name"):
        describe(dataclasses.replace(GPFN(solver=NewtonSolver()), energy=Potential(torch.sum)))
    with pytest.raises(ArgumentError, match="has no name"):
        describe(nn.Linear(1, 1))


def test_a_predictor_is_described_as_it_was_built():
    predictor = PointPredictor(nn.Bilinear(1, 1, 1), BFN(), parameterisation="epsilon", clip=None)
    assert describe(predictor) == {"kind": "point", "parameterisation": "epsilon", "clip_in_training": False}
    assert word(predictor) == "point:parameterisation=epsilon"
    clipped = PointPredictor(nn.Bilinear(1, 1, 1), GPFN(), clip=(-1.0, 1.0), mean=(0.5, 2.0), std=(1.0, 3.0))
    moments = {"parameterisation": "edm", "clip": [-1.0, 1.0], "mean": [0.5, 2.0], "std": [1.0, 3.0]}
    assert describe(clipped) == {"kind": "point", "clip_in_training": False, **moments}
    assert describe(Part("point", {"clip": None})) == {"kind": "point", "clip": None}
