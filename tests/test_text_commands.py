"""Text on the command line: training, samples, prompts, gaps, and one sentence for what cannot be."""

import json
import re

import pytest

SMALL = ("--network", "transformer:width=8,depth=1,heads=1", "--device", "cpu", "--batch-size", 4, "--grid", 2)


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("in the beginning was the word and the word was with god " * 60, encoding="utf-8")
    return path


def trained(run, book, out, *words):
    status, said, err = run(
        "train", "--data", book, "--out", out, "--steps", 2, "--context", 16, "--tokens", "letters", *SMALL, *words
    )
    assert status == 0, err
    return said


@pytest.mark.parametrize(
    "flow", ["masked", "bfn-discrete", "gpfn-linear", "gpfn-fisher-rao:schedule=(linear:final=0.25)"]
)
def test_text_is_learnt_drawn_begun_and_filled(run, book, tmp_path, flow):
    said = trained(run, book, tmp_path / "m", "--flow", flow)
    assert "14 different of a vocabulary of 27; held out: the last 0.05" in said
    assert re.search(r"\d+ held-out texts: at most \d+\.\d+ ± \d+\.\d+ bits a character", said)
    held = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    assert held["data"]["vocabulary"][:3] == [" ", "a", "b"]
    assert held["provenance"]["bound"]["bits_per_dimension"] > 0
    assert len((tmp_path / "m" / "samples" / "step-00000002.txt").read_text(encoding="utf-8").splitlines()) == 2
    out = tmp_path / "s.txt"
    for words, fits in (
        ((), lambda text: len(text) == 16),
        (("--prompt", "and the "), lambda text: len(text) == 16 and text.startswith("and the ")),
        (("--infill", "to be _r _ot"), lambda text: len(text) == 12 and text[:6] + text[7:9] == "to be r "),
    ):
        status, said, err = run(
            "sample", tmp_path / "m", "--n", 3, "--steps", 4, "--out", out, "--device", "cpu", *words
        )
        assert status == 0, err
        assert "3 texts, 4 network evaluations each" in said
        lines = out.read_text(encoding="utf-8").split("\n")[:-1]
        assert len(lines) == 3
        assert all(map(fits, lines))


def test_what_cannot_be_is_said_in_a_line(run, book, tmp_path):
    trained(run, book, tmp_path / "m")
    sample = ("sample", tmp_path / "m", "--device", "cpu", "--out", tmp_path / "s.txt")
    train = ("train", "--data", book, "--out", tmp_path / "n", "--steps", 2, "--device", "cpu")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "rows.csv").write_text("1,2\n3,4\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("café ".encode("latin-1") * 99)
    for words, said in (
        ((*sample, "--prompt", "And "), "'A', character 1 of 'And ', is not in the vocabulary"),
        ((*sample, "--prompt", "a" * 16), "has 16 characters, and the model's context is 16: give at most 15"),
        ((*sample, "--infill", "no gap"), "has no gap"),
        ((*sample, "--infill", "_" * 17), "context is 16: give at most 16"),
        ((*sample, "--infill", "a_", "--prompt", "a"), "give one of them"),
        ((*sample, "--sampler", "multistep2"), "which Masked has not: use Stochastic, in words stochastic"),
        (("sample", "mnist", "--prompt", "a", "--device", "cpu"), "--prompt is for models of text"),
        ((*sample[:-1], tmp_path / "s.png"), "text is written to a file .txt"),
        ((*train, "--flow", "bfn"), "texts are of classes, and bfn is a flow of real numbers"),
        ((*train, "--flow", "gpfn-kl"), "a step of KL ends there at once"),
        ((*train, "--flow", "gpfn"), "such data take the flows masked, bfn-discrete, gpfn-linear or gpfn-fisher-rao"),
        ((*train, "--size", 8), "--size is for folders of pictures"),
        ((*train, "--tokens", "words"), "tokens are characters, letters, bytes"),
        ((*train, "--context", 10**6), "fewer than the context of 1000000"),
        ((*train, "--conditional"), "holds no labels"),
        ((*train, "--init", tmp_path / "m", "--context", 16), "other tokens than"),
        ((*train, "--teacher", tmp_path / "m", "--context", 16, "--tokens", "letters"), "begins with a fixed belief"),
        (("train", "--data", tmp_path / "empty.txt", *train[3:]), "is empty"),
        (("train", "--data", tmp_path / "latin.txt", *train[3:]), "byte 0xe9 at place 3 is no UTF-8"),
        (
            ("train", "--data", tmp_path / "rows.csv", "--tokens", "bytes", *train[3:]),
            "--tokens is for text",
        ),
    ):
        status, _, err = run(*words)
        assert status == 2, (words, err)
        assert err.startswith("proxflow: error: ")
        assert err.count("\n") == 1
        assert said in err, (words, err)


def test_samples_do_not_take_the_place_of_what_was_trained_on(run, book, tmp_path):
    trained(run, book, tmp_path / "m")
    whole = book.read_bytes()
    status, _, err = run("sample", tmp_path / "m", "--n", 1, "--steps", 1, "--device", "cpu", "--out", book)
    assert status == 2
    assert "book.txt is what the model was trained on, which would be lost: choose another place" in err
    (tmp_path / "books").mkdir()
    kept = book.rename(tmp_path / "books" / "book.txt")
    trained(run, tmp_path / "books", tmp_path / "n")
    status, _, err = run("sample", tmp_path / "n", "--n", 1, "--steps", 1, "--device", "cpu", "--out", kept)
    assert status == 2
    assert "is a file in the folder" in err
    assert kept.read_bytes() == whole


def test_rows_do_not_take_the_place_of_what_was_trained_on(run, tmp_path):
    points = tmp_path / "points.csv"
    points.write_text("".join(f"{k / 7:.3f},{k / 3:.3f}\n" for k in range(40)), encoding="utf-8")
    status, _, err = run(
        "train",
        "--data",
        points,
        "--out",
        tmp_path / "m",
        "--steps",
        2,
        "--grid",
        0,
        "--device",
        "cpu",
        "--batch-size",
        4,
    )
    assert status == 0, err
    status, _, err = run("sample", tmp_path / "m", "--n", 2, "--steps", 1, "--device", "cpu", "--out", points)
    assert status == 2
    assert "is what the model was trained on" in err
