"""Text: reading, windows, vocabularies, prompts and gaps, the embedded corpus, and what is refused."""

import hashlib
import json

import numpy as np
import pytest
import torch

from proxflow import DataError, build
from proxflow.data import text as corpus
from proxflow.data.kinds import kind_of_source
from proxflow.data.kinds.text import Text
from proxflow.errors import ArgumentError

LINE = "In the beginning God created the heaven and the earth.\n"


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {k}: the quick brown fox jumps over it.\n" for k in range(400)), encoding="utf-8")
    return path


def test_the_embedded_corpus_is_whole():
    text = corpus.load_bible()
    assert len(text) == 4_139_037
    assert text.startswith(LINE)
    assert text.endswith("be with you all. Amen.\n")
    assert hashlib.sha256(text.encode()).hexdigest() == corpus.SHA256
    assert corpus.SHA256 in (corpus.BIBLE.parent / "LICENSE").read_text(encoding="utf-8")


def test_a_damaged_corpus_is_refused(tmp_path):
    path = tmp_path / "kjv.txt.xz"
    path.write_bytes(corpus.BIBLE.read_bytes()[:-100])
    with pytest.raises(DataError, match="reinstall it"):
        corpus.load_bible(path)


def test_letters_are_those_of_text8():
    assert corpus.letters("In 1611, King  James' Bible\n(KJV)") == "in one six one one king james bible kjv"


def test_windows_hold_out_the_end_of_each_part(book):
    loaded = Text.read(str(book), held_out=0.1, context=20)
    kind, text = loaded.kind, book.read_text(encoding="utf-8")
    train = {kind.text_of(row) for row in loaded.train.x}
    held = [kind.text_of(row) for row in loaded.held_out.x]
    stretches = loaded.record["stretches"]
    assert stretches == 20
    ends = [len(text) * (k + 1) // stretches for k in range(stretches)]
    size = int(0.1 * len(text)) // stretches
    kept = [text[end - size : end] for end in ends]
    assert held == [part[k : k + 20] for part in kept for k in range(0, size - 19, 20)]
    starts = [0, *ends[:-1]]
    assert train == {text[k : k + 20] for s, e in zip(starts, ends, strict=True) for k in range(s, e - size - 19, 5)}
    assert torch.equal(Text.read(str(book), held_out=0.1, context=20, seed=3).train.x, loaded.train.x)


@pytest.mark.parametrize("tokens", ["characters", "letters", "bytes"])
def test_tokens_are_read_back_as_the_text(book, tokens):
    loaded = Text.read(str(book), context=40, tokens=tokens)
    kind = loaded.kind
    whole = book.read_text(encoding="utf-8")
    whole = corpus.letters(whole) if tokens == "letters" else whole
    first = kind.text_of(loaded.train.x[0])
    assert first == whole[:40]
    assert torch.equal(kind.indices_of(first), loaded.train.x[0].long())
    assert kind.symbols == {"characters": len(set(whole)), "letters": 27, "bytes": 256}[tokens]
    assert loaded.train.x.dtype == torch.uint8
    assert kind_of_source(str(book)) is Text


def test_documents_of_a_folder_stand_one_after_the_other(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "b.txt").write_text("second " * 20, encoding="utf-8")
    (tmp_path / "in" / "a.txt").write_bytes(b"\xef\xbb\xbfthird\r\n" * 1 + b"line " * 20)
    (tmp_path / "a.txt").write_text("first " * 20, encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step.txt").write_text("what training drew", encoding="utf-8")
    loaded = Text.read(str(tmp_path), held_out=0, context=30, exclude=tmp_path / "run")
    whole = "first " * 20 + "\n\n" + "second " * 20 + "\n\nthird\n" + "line " * 20
    assert loaded.record["documents"] == 3
    assert loaded.record["length"] == len(whole)
    assert loaded.kind.text_of(loaded.train.x[0]) == whole[:30]
    assert kind_of_source(str(tmp_path)) is Text


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (b"", {}, "is empty"),
        ("café ".encode("latin-1") * 99, {}, "byte 0xe9 at place 3 is no UTF-8"),
        (b"short", {}, "has 5 characters, fewer than the context of 128"),
        (b"aaaa" * 99, {}, "holds 'a' alone"),
        (b"12345 " * 99, {"tokens": "words"}, "tokens are characters, letters, bytes, or"),
        (b"abc def " * 99, {"context": 0}, "context must be at least 1"),
        (b"abc def " * 99, {"held_out": 1.0}, "held_out"),
        (b"abc def " * 99, {"size": 3}, "text has the settings context and tokens, got size"),
        (b"abc def " * 99, {"tokens": "none.json"}, "none.json: does not exist"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(tmp_path, content, settings, said):
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises((DataError, ArgumentError), match=said) as caught:
        Text.read(str(path), **settings)
    assert "\n" not in str(caught.value)


def test_bytes_read_any_file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes("café ".encode("latin-1") * 99)
    kind = Text.read(str(path), tokens="bytes", context=10).kind
    assert kind.text_of(torch.tensor(list("né".encode()))) == "né"
    assert kind.text_of(torch.tensor([0xE9])) == "\ufffd"


def test_prompts_and_gaps():
    kind = Text((12,), "letters", tuple(corpus.LETTERS))
    tokens, known = kind.begun("and it ")
    assert known.tolist() == [True] * 7 + [False] * 5
    assert kind.text_of(tokens[:7]) == "and it "
    tokens, known, length = kind.with_gaps("to be_or _t")
    assert (length, known.tolist()) == (11, [c not in "_" for c in "to be_or _t"] + [False])
    assert kind.text_of(tokens)[:5] == "to be"
    for bad, said in (("And", "'A', character 1"), ("a" * 12, "context is 12: give at most 11"), ("", "is empty")):
        with pytest.raises(ArgumentError, match=said):
            kind.begun(bad)
    for bad, said in (("to be", "has no gap"), ("_" * 13, "context is 12: give at most 12")):
        with pytest.raises(ArgumentError, match=said):
            kind.with_gaps(bad)
    assert kind.with_gaps("_" * 12)[2] == 12
    with pytest.raises(ArgumentError, match=r"'T', character 1 .* write lower-case letters and blanks$"):
        kind.begun("The river")


def test_underscores_and_backslashes_can_be_known():
    kind = Text((12,), "characters", tuple(sorted(set("my_name =\\"))))
    tokens, known, length = kind.with_gaps(r"my\_n_me = \\")
    assert length == 11
    assert kind.text_of(tokens[known]) == "my_nme = \\"
    assert known.tolist() == [True] * 4 + [False] + [True] * 6 + [False]
    with pytest.raises(ArgumentError, match="has no gap"):
        kind.with_gaps(r"my\_name")


def test_samples_are_written_a_line_each_or_apart(tmp_path):
    kind = Text((4,), "characters", ("\n", " ", "a", "b"))
    kind.write(tmp_path / "s.txt", torch.tensor([[2, 1, 3, 2], [3, 3, 3, 3]]))
    assert (tmp_path / "s.txt").read_text(encoding="utf-8") == "a ba\nbbbb\n"
    kind.write(tmp_path / "s.txt", torch.tensor([[2, 0, 3, 2], [3, 3, 3, 3]]))
    assert (tmp_path / "s.txt").read_text(encoding="utf-8") == "a\nba\n\nbbbb\n\n"
    kind.write(tmp_path / "s.jsonl", torch.tensor([[2, 0, 0, 2], [3, 3, 3, 0]]))
    lines = (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == ["a\n\na", "bbb\n"]
    with pytest.raises(ArgumentError, match=r"file \.txt"):
        kind.check_output(tmp_path / "s.png", 2)
    picture = kind.preview(torch.tensor([[2, 0, 3, 2]]))
    assert picture.dtype == np.uint8
    assert picture.min() < 128  # something is written


def test_vocabularies_that_do_not_fit_are_refused():
    for wrong in (
        {"vocabulary": ("a",)},
        {"vocabulary": ("b", "a")},
        {"vocabulary": ("a", "bc")},
        {"tokens": "bytes", "vocabulary": ("a", "b")},
        {"tokens": "words"},
        {"tokens": "tokenizer"},
    ):
        with pytest.raises(ArgumentError):
            Text((4,), **wrong)


def test_a_tokenizer_stands_in_the_kind(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([LINE * 5, "What is known of it."], trainer)
    made.save(str(tmp_path / "tokens.json"))
    (tmp_path / "book.txt").write_text(LINE * 50, encoding="utf-8")
    loaded = Text.read(str(tmp_path / "book.txt"), context=8, tokens=str(tmp_path / "tokens.json"))
    kind = loaded.kind
    assert kind.symbols == made.get_vocab_size()
    assert LINE.startswith(kind.text_of(loaded.train.x[0]))
    tokens, known = kind.begun("In the ")
    assert kind.text_of(tokens[known]) == "In the "
    assert build(kind, network="transformer:width=8,depth=1,heads=1").shape == (8,)
    (tmp_path / "tokens.json").write_text(json.dumps({"model": {"type": "BPE"}}), encoding="utf-8")
    with pytest.raises(DataError, match=r"tokens\.json: is no file of the package tokenizers"):
        Text.read(str(tmp_path / "book.txt"), context=8, tokens=str(tmp_path / "tokens.json"))


def test_samples_of_bytes_are_written_as_they_are(tmp_path):
    kind = Text((5,), "bytes")
    words = [word.encode("latin-1") for word in ("caf\xe9 ", "\xfcber ")]
    kind.write(tmp_path / "s.txt", torch.tensor([list(word) for word in words]))
    assert (tmp_path / "s.txt").read_bytes() == b"caf\xe9 \n\xfcber \n"
    kind.write(tmp_path / "s.jsonl", torch.tensor([list(word) for word in words]))
    assert json.loads((tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()[0]) == "caf\ufffd "


@pytest.fixture
def word_level(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))  # noqa: S106 - no password
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False)
    made.train_from_iterator(["the river ran by the mill", "never seen in the text itself"], trainer)
    made.save(str(tmp_path / "words.json"))
    return tmp_path / "words.json"


def test_text_that_a_tokenizer_does_not_know_is_refused_or_told(tmp_path, word_level):
    def read(text):
        (tmp_path / "book.txt").write_text(text, encoding="utf-8")
        return Text.read(str(tmp_path / "book.txt"), context=4, tokens=str(word_level)).notes

    with pytest.raises(DataError, match=r"words\.json does not know 100 % of the text, blanks aside: give a tokenizer"):
        read("\u5927\u6cb3 \u6d41\u8fc7 " * 50)
    (note,) = read("the river ran by the mill " * 20)
    assert "120 tokens of 1 document, 5 different of a vocabulary of 11;" in note
    _, note = read("the river ran by a mill " * 20)
    assert note.endswith("does not know 5.56 % of the text, blanks aside, which became [UNK]")


def test_what_a_tokenizer_leaves_out_is_told(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.train_from_iterator(["abc"], tokenizers.trainers.BpeTrainer(show_progress=False))
    made.save(str(tmp_path / "tokens.json"))
    (tmp_path / "book.txt").write_text("abcaabcd" * 50, encoding="utf-8")
    loaded = Text.read(str(tmp_path / "book.txt"), context=8, tokens=str(tmp_path / "tokens.json"))
    assert loaded.notes[1].endswith("does not know 12.5 % of the text, blanks aside, which is left out")


def test_known_text_that_a_tokenizer_changes_is_refused_with_what_it_keeps(tmp_path, word_level):
    (tmp_path / "book.txt").write_text("the river ran by the mill " * 20, encoding="utf-8")
    kind = Text.read(str(tmp_path / "book.txt"), context=12, tokens=str(word_level)).kind
    with pytest.raises(ArgumentError, match=r"turns 'the ' into 'the', and known text .*: write 'the____ran'$"):
        kind.with_gaps("the ____ ran")
    assert kind.with_gaps("the____ran")[2] == 6
    with pytest.raises(ArgumentError, match=r"turns 'the ' into 'the', .*: write 'the'$"):
        kind.begun("the ")
    with pytest.raises(ArgumentError, match=r"'\[UNK\]' stands for what it does not know, so leave that out"):
        kind.begun("the zebra")


def test_text_without_letters_is_refused_for_letters(tmp_path):
    (tmp_path / "book.txt").write_text("\u5927\u6cb3 " * 50, encoding="utf-8")
    with pytest.raises(DataError, match="none of its characters are letters a to z or digits"):
        Text.read(str(tmp_path / "book.txt"), context=4, tokens="letters")
