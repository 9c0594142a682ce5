"""Names: what stands there exists, what installed packages add is found, and what is broken is named."""

import os
import subprocess
import sys
import warnings

import pytest
from stranger import stranger_package

from proxflow import names
from proxflow.cli.list import lines
from proxflow.divergences import Divergence
from proxflow.errors import ArgumentError


@pytest.fixture
def on_path(monkeypatch):
    """Put folders on the path, as installing a package there would."""

    def put(folder):
        monkeypatch.syspath_prepend(folder)
        names._scan.cache_clear()

    yield put
    monkeypatch.undo()
    names._scan.cache_clear()


@pytest.mark.parametrize("group", names.BUILT_IN)
def test_every_name_stands_for_a_class_and_says_what_it_is(group):
    for name, entry in names.BUILT_IN[group].items():
        assert isinstance(entry.load(), type), name
        assert entry.says() == entry.line
        assert entry.line, name


def test_every_divergence_of_plain_values_has_a_name():
    named = {entry.load() for entry in names.BUILT_IN["divergences"].values()}
    unnamed = {cls.__name__ for cls in Divergence.__subclasses__() if cls.__module__.startswith("proxflow.")} - {
        cls.__name__ for cls in named
    }
    assert unnamed == {"Bregman", "ReverseBregman"}  # they are made of a function


def test_near_names_are_suggested():
    with pytest.raises(ArgumentError, match="no divergence is called 'reverse_kl': did you mean reverse-kl"):
        names.find("divergences", "reverse_kl")
    with pytest.raises(ArgumentError, match="known are linear, cosine, quarter-cosine, shifted"):
        names.find("schedules", "xyz")


def test_installed_packages_add_names(tmp_path, on_path):
    on_path(stranger_package(tmp_path / "a"))
    assert names.find("divergences", "scaled").load().__name__ == "Scaled"
    assert names.known("samplers")["early"].says() == "Deterministic steps that are shorter at first."
    assert list(names.known("networks"))[-1] == "labelled"
    assert list(names.added("kinds")) == ["angles"]
    assert not names.added("flows")


def test_a_broken_package_is_named_and_stops_nothing(tmp_path, on_path):
    on_path(stranger_package(tmp_path / "a"))
    on_path(stranger_package(tmp_path / "b", "broken", "import nonesuch", {"divergences": {"torn": "Torn"}}))
    on_path(stranger_package(tmp_path / "c", "empty", "thing = 3", {"samplers": {"gone": "Gone", "three": "thing"}}))
    with pytest.raises(
        ArgumentError, match=r"broken:Torn, which the package broken adds, cannot be imported: .*nonesuch"
    ):
        names.find("divergences", "torn").load()
    assert "which the package empty adds, cannot be imported" in names.known("samplers")["gone"].says()
    with pytest.raises(ArgumentError, match="empty:thing, which the package empty adds, is no class: 3"):
        names.find("samplers", "three").load()
    assert names.find("divergences", "scaled").load().__name__ == "Scaled"


def test_a_name_of_two_packages_is_refused_and_said_where_it_stands(tmp_path, on_path):
    on_path(stranger_package(tmp_path / "b", "second", "class B: pass", {"samplers": {"quick": "B", "unipc": "B"}}))
    on_path(stranger_package(tmp_path / "a", "first", "class A: pass", {"samplers": {"quick": "A", "slow": "A"}}))
    sentence = "first and second both add 'quick' to the samplers, so it names neither: remove one of these packages"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names.find("samplers", "slow").package == "first"
        with pytest.raises(ArgumentError, match=sentence):
            names.find("samplers", "quick")
        assert names.known("samplers")["quick"].says() == sentence
        assert lines("samplers")["quick"] == (sentence, "first and second")
        assert names.find("samplers", "unipc").load().__name__ == "Multistep"
        assert "not that of the package second" in lines("samplers")["unipc"][0]


def test_a_name_that_no_word_can_hold_is_not_taken(tmp_path, on_path):
    wrong = ["a:b", "a,b", "a(b)", "a b"]  # an entry's name ends at =
    on_path(stranger_package(tmp_path, "odd", "class A: pass", {"samplers": dict.fromkeys(wrong, "A")}))
    for name in wrong:
        with pytest.raises(ArgumentError, match="which no word can hold: rename it without blanks, brackets and : , ="):
            names.find("samplers", name)
        assert "rename it" in lines("samplers")[name][0]


def test_listing_names_needs_no_torch(tmp_path):
    folder = stranger_package(tmp_path)
    script = (
        "import sys\nfrom proxflow import names\n"
        "assert 'scaled' in names.known('divergences')\n"
        "assert not {'torch', 'numpy', 'acme'} & set(sys.modules)"
    )
    path = os.pathsep.join([str(folder), *sys.path])
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, check=True, timeout=120)
