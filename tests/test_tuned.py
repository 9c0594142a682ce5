"""The search for the settings that serve MNIST: what it compares, what it tries next, and that it goes on."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from support import first_images

from proxflow import data
from proxflow.config import TrainingConfig
from proxflow.errors import ArgumentError, OutputError
from proxflow.models import spec
from tools import tuned

KEPT = Path(__file__).parent.parent / "results" / "tuned" / "results.json"
TINY = tuned.Search("unet:channels=8,patch=4", TrainingConfig(steps=2, batch_size=8), 20, 100, ("unipc",), (2,))
FLOWS = {"gpfn-w2": ("gpfn-w2:schedule=linear:final=0.5", "gpfn-w2"), "bfn": ("bfn:sigma1=0.7",)}
WEIGHTS = {"gpfn-w2": ("weight_floor=1.0",)}


def record(flow, seed, sampler, nfe, frechet):
    return {"flow": flow, "seed": seed, "sampler": sampler, "nfe": nfe, "frechet": frechet}


def test_a_flow_has_the_geometric_mean_of_its_best_samplers():
    records = [
        *(record("a", 0, sampler, 4, distance) for sampler, distance in (("unipc", 8.0), ("stochastic", 2.0))),
        *(record("a", 0, sampler, 10, distance) for sampler, distance in (("unipc", 1.0), ("stochastic", 9.0))),
        *(record("a", 1, "unipc", nfe, distance) for nfe, distance in ((4, 4.0), (10, 2.0))),
        record("b", 0, "unipc", 4, 0.1),  # of one seed alone, which is compared with nothing
    ]
    assert tuned.means(records, (0, 1)) == {"a": pytest.approx((2 * 1 * 4 * 2) ** 0.25)}
    first = [each for each in records if each["seed"] == 0]
    assert tuned.means(first, (0,)) == {"a": pytest.approx(math.sqrt(2)), "b": pytest.approx(0.1)}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a tiny search, and what it found, of the first images alone."""
    out, said = tmp_path_factory.mktemp("tuned"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", first_images(300))
        for cached in (tuned._images, tuned._reference):
            cached.cache_clear()
        assert len(tuned._images(100)[0]) == 200
        yield out, lambda: tuned.run(out, (3,), said.append, search=TINY, flows=FLOWS, weights=WEIGHTS)
    for cached in (tuned._images, tuned._reference):
        cached.cache_clear()


def test_a_search_tries_weights_with_the_best_and_goes_on(searched):
    out, again = searched
    first = again()
    plain = {flow: first["means"][flow] for flow in FLOWS["gpfn-w2"]}
    best = min(plain, key=plain.get)
    assert set(first["means"]) == {*FLOWS["gpfn-w2"], *FLOWS["bfn"], tuned._with(best, "weight_floor=1.0")}
    assert first["best"]["bfn"] == "bfn:sigma1=0.7"
    assert first["floor"] > 0
    assert len(first["records"]) == len(list(out.glob("pieces/*.json"))) == 4
    assert json.loads((out / "results.json").read_text()) == first

    # A piece that is there is read, not made: with it another flow is the best, and its weights alone are missing.
    other = next(flow for flow in plain if flow != best)
    tuned._file(out, other, 3).write_text(json.dumps([record(other, 3, "unipc", 2, 1e-3)]))
    second = again()
    assert second["best"]["gpfn-w2"] == other
    assert len(second["records"]) == 5
    assert {flow: second["means"][flow] for flow in first["means"] if flow != other} == {
        flow: first["means"][flow] for flow in first["means"] if flow != other
    }


def test_what_would_not_compare_is_refused(searched, tmp_path):
    out, again = searched
    again()
    with pytest.raises(OutputError, match=r"holds a tuned run with samples = 20, not 21"):
        tuned.run(out, (3,), print, search=replace(TINY, samples=21), flows=FLOWS)
    for flow, message in (("bfn:sigma1=0.5", "is no gpfn-w2"), ("gpfn-w2:final=3", "no setting 'final'")):
        with pytest.raises(ArgumentError, match=message):
            tuned.run(tmp_path, (0,), print, search=TINY, flows={"gpfn-w2": (flow,)})
    assert not any(tmp_path.iterdir())


def test_every_flow_of_the_search_can_be_built():
    for family, flows in tuned.FLOWS.items():
        for flow in (*flows, *(tuned._with(flows[0], setting) for setting in tuned.WEIGHTS.get(family, ()))):
            assert type(spec.parse("flows", flow)) is type(spec.parse("flows", f"{family}-tuned"))


@pytest.mark.skipif(not KEPT.exists(), reason="no search is kept")
@pytest.mark.parametrize("family", tuned.FLOWS)
def test_the_tuned_flows_are_those_that_the_kept_search_chose(family):
    best = json.loads(KEPT.read_text(encoding="utf-8"))["best"][family]
    assert spec.parse("flows", f"{family}-tuned") == spec.parse("flows", best)
