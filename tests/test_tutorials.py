"""Tutorials: kept outputs belong to the code beside them, and another code takes none of them."""

import json
from pathlib import Path

from tools import tutorials

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"
PAGE = "# Title\n\nwords\n\n```{code-cell} python\nprint(1)\n```\n\nmore\n\n```{code-cell} python\nprint(2)\n```\n"


def test_kept_outputs_are_those_of_the_code():
    assert tutorials.stale(FOLDER) == [], "run: python -m tools.site --keep"


def test_every_tutorial_is_listed():
    names = {page.stem for page in FOLDER.glob("*.md")} - {"index"}
    assert names == set((FOLDER / "index.md").read_text().split("```{toctree}")[1].split()) & names
    assert all(tutorials.checksum((FOLDER / f"{name}.md").read_text()) for name in names)


def test_the_checksum_is_of_the_code_alone():
    assert tutorials.checksum(PAGE) == tutorials.checksum(PAGE.replace("words", "other words"))
    assert tutorials.checksum(PAGE) != tutorials.checksum(PAGE.replace("print(2)", "print(3)"))
    assert tutorials.checksum(PAGE) != tutorials.checksum(PAGE.replace("print(1)\n```", "print(1)\n\nprint(2)\n```"))
    assert tutorials.checksum("# Title\n\n```python\nprint(1)\n```\n") == ""


def test_outputs_of_other_code_are_named(tmp_path):
    cells = [{"cell_type": "code", "outputs": []}] * 2
    kept = tmp_path / "kept" / "page.ipynb"
    kept.parent.mkdir()
    kept.write_text(json.dumps({"cells": cells, "metadata": {"code": tutorials.checksum(PAGE)}}))
    assert tutorials.stale(tmp_path) == ["page"], "its page is gone"
    (tmp_path / "page.md").write_text(PAGE)
    assert tutorials.stale(tmp_path) == []
    (tmp_path / "page.md").write_text(PAGE.replace("print(2)", "print(3)"))
    assert tutorials.stale(tmp_path) == ["page"]
    kept.write_text("{")
    assert tutorials.stale(tmp_path) == ["page"]
