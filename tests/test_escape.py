"""Names that others chose, in the terminal, in Markdown and in web pages."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from proxflow import build
from proxflow.cli import main
from proxflow.data.kinds.image import Image as ImageKind
from proxflow.models.card import card
from proxflow.runtime import escape
from proxflow.studies import pages
from proxflow.studies.pages import Bullets, Heading, Paragraph, Strong, Table

EVIL = "<b>x|y`\n# z\x1b[2J\x07\x9b\u202e\udce9"


def test_the_terminal_is_sent_nothing_that_it_obeys():
    assert escape.terminal("ä × 3 — 日本") == "ä × 3 — 日本"
    assert escape.terminal(EVIL) == r"<b>x|y`\n# z\x1b[2J\x07\x9b\u202e\udce9"
    assert escape.terminal_lines("a\nb\x00") == "a\nb\\x00"


def test_markdown_has_no_markup_of_a_name():
    assert escape.markdown(EVIL) == r"\<b\>x\|y\` \# z\\x1b\[2J\\x07\\x9b\\u202e\\udce9"
    assert escape.markdown("- a") == r"\- a"


def test_web_pages_have_no_markup_of_a_name():
    assert escape.html('<b a="x">&') == "&lt;b a=&quot;x&quot;&gt;&amp;"
    assert "\x1b" not in escape.html(EVIL)


def test_a_model_card_shows_names_as_they_are():
    model = build((1, 8, 8), network="unet:channels=8,multipliers=1")
    model.provenance.update(data=EVIL, training={EVIL: EVIL}, hardware="no object", versions={"torch": EVIL})
    text = card(model, [{"sampler": EVIL, "extractor": EVIL, "reference": EVIL, "frechet": 1.0, "samples": EVIL}])
    text.encode("utf-8")
    assert "<b>" not in text.replace(r"\<b\>", "")
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1


@pytest.mark.parametrize("setting", [pages.to_markdown, lambda blocks: pages.to_html(blocks, None)])
def test_reports_show_names_as_they_are(setting):
    blocks = [Heading(1, EVIL), Paragraph(EVIL), Bullets((EVIL,)), Table((EVIL,), ((Strong(EVIL),), (EVIL,)), 1)]
    text = setting(blocks)
    text.encode("utf-8")
    assert "<b>" not in text.replace(r"\<b\>", "")
    assert "\x1b" not in text
    assert "\x9b" not in text


def test_reports_on_the_terminal(capsys):
    pages.show([Heading(1, EVIL), Paragraph(EVIL), Bullets((EVIL,)), Table((EVIL,), ((Strong(EVIL),), (EVIL,)), 1)])
    out = capsys.readouterr().out
    out.encode("utf-8")
    assert "\x1b[2J" not in out
    assert "\x9b" not in out


def test_the_command_line_says_any_name(tmp_path, capsys):
    folder = tmp_path / "<b>`|\x1b[2J"
    folder.mkdir()
    for k in range(8):
        Image.fromarray(np.full((8, 8), 30 * k, np.uint8)).save(folder / f"{k}.png")
    network = ("--network", "unet:channels=8,multipliers=1,patch=4")
    words = (
        "train",
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "1",
        "--batch-size",
        "2",
        *network,
    )
    assert main([*words, "--device", "cpu"]) == 0
    assert main(["train", "--data", str(folder / "none"), "--out", str(tmp_path / "other"), "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert r"\x1b[2J: 8 grey pictures" in out
    assert "\x1b" not in out + err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_few_characters_ends_nothing(tmp_path, encoding):
    (tmp_path / "a.csv").write_text("1,2\n3,4\n5,6\n")
    words = ["train", "--data", "日本", "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "proxflow.cli", *words],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert rb"\u65e5\u672c" in done.stderr
    assert b"Traceback" not in done.stderr


def test_classes_have_the_same_names_in_every_language(tmp_path):
    for name in ("b", "é日本"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for k in range(2):
            Image.new("L", (4, 4), 50 * k).save(tmp_path / "pictures" / name / f"{k}.png")
    here = ImageKind.read(str(tmp_path / "pictures")).kind.classes
    assert here == ("b", "é日本")
    code = (
        "import sys; from proxflow.data.kinds.image import Image; from proxflow.cli._common import classes_asked\n"
        "names = Image.read(sys.argv[1]).kind.classes\n"
        "print(ascii(names), classes_asked(sys.argv[2:], names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pictures"), "é日本"], capture_output=True, text=True, timeout=120,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, check=False,
    )  # fmt: skip
    assert done.stdout == f"{here!a} [1]\n", done.stderr


def test_output_that_is_no_terminal_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["--version"]) == 0
