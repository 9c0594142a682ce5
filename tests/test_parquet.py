"""Tables in parquet files: what is read of each type, and that what is made has the types of the original."""

import datetime as dt
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

import proxflow
from proxflow.cli import main
from proxflow.data.kinds.table import Column, Table
from proxflow.data.parquet import write_filled
from proxflow.errors import ArgumentError, DataError
from proxflow.models import load, save

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NUMBER = 60
DAY, NOON = dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, 12, 30, 15)


def every_type(number=NUMBER):
    """A column of every type that there may be, and its type."""
    choice = np.random.default_rng(0)
    whole, real = choice.integers(0, 100, number), choice.normal(size=number)
    days = [DAY + dt.timedelta(days=int(k)) for k in whole]
    moments = [NOON + dt.timedelta(hours=7 * int(k)) for k in whole]
    graded = pa.DictionaryArray.from_arrays(
        pa.array((whole % 2 * 2).tolist(), pa.int16()), pa.array(["low", "middle", "high"]), ordered=True
    )
    return {
        "int8": pa.array(whole, pa.int8()),
        "uint64": pa.array(whole, pa.uint64()),
        "few": pa.array(whole % 3, pa.int32()),
        "gaps": pa.array([None if k % 7 == 0 else int(k) for k in whole], pa.int64()),
        "huge": pa.array([2**63 - 1024 * (1 + int(k)) for k in whole], pa.int64()),
        "half": pa.array(real.astype(np.float16), pa.float16()),
        "single": pa.array(real.round(2), pa.float32()),
        "double": pa.array(real, pa.float64()),
        "nan": pa.array([float("nan") if k % 5 == 0 else k / 4 for k in whole], pa.float64()),
        "whole": pa.array(whole.astype(float), pa.float64()),
        "money": pa.array([Decimal(int(k)) / 4 for k in whole], pa.decimal128(10, 2)),
        "text": pa.array([("a", "b", None)[k % 3] for k in whole], pa.string()),
        "code": pa.array([f"{k:03d}" for k in whole], pa.large_string()),
        "sort": pa.array([("x", "y")[k % 2] for k in whole]).dictionary_encode(),
        "digits": pa.array([str(k) for k in whole % 12]).dictionary_encode(),
        "grade": graded,
        "true": pa.array([bool(k % 2) for k in whole], pa.bool_()),
        "day": pa.array([day.date() for day in days], pa.date32()),
        "midnight": pa.array(days, pa.timestamp("ns")),
        "moment": pa.array(moments, pa.timestamp("ms")),
        "zoned": pa.array(moments, pa.timestamp("us", tz="Europe/Berlin")),
        "same": pa.array([7] * number, pa.int16()),
    }


def written(path, columns, **settings):
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    parquet.write_table(table, path, **settings)
    return str(path)


def read(path):
    return parquet.ParquetFile(path).read()


@pytest.fixture
def source(tmp_path):
    return written(tmp_path / "a.parquet", every_type())


def test_what_is_read_and_written_again_is_the_same_table(tmp_path, source):
    loaded = Table.read(source, held_out=0)
    loaded.kind.write(tmp_path / "b.parquet", loaded.train.x)
    original, made = read(source), read(tmp_path / "b.parquet")
    assert made.schema.equals(original.schema)
    for name in original.column_names:
        before, after = (table.column(name).to_pylist() for table in (original, made))
        if name == "nan":  # which is no null, and equals nothing
            before, after = ([str(value) for value in values] for values in (before, after))
        assert after == before, name
    assert made.column("grade").chunk(0).dictionary.to_pylist() == ["low", "middle", "high"]


def test_columns_are_what_their_types_and_cells_say(source):
    columns = {column.name: column for column in Table.read(source, held_out=0).kind.columns}
    assert {name: column.role for name, column in columns.items()} == {
        **dict.fromkeys(["int8", "uint64", "gaps", "huge", "whole", "code"], "integer"),
        **dict.fromkeys(["half", "single", "double", "nan", "money"], "number"),
        **dict.fromkeys(["few", "text", "sort", "digits", "grade", "true"], "category"),
        **dict.fromkeys(["day", "midnight", "moment", "zoned"], "date"),
        "same": "constant",
    }
    assert columns["single"].decimals == 2  # not those of the nearest number in double precision
    assert columns["true"].categories == ("False", "True")
    assert (columns["gaps"].missing, columns["nan"].missing) == ("", "nan")
    assert (columns["midnight"].decimals, columns["moment"].decimals) == (0, 1)
    assert columns["zoned"].least == (NOON - dt.datetime(1970, 1, 1)) / dt.timedelta(days=1)  # of UTC


def test_a_made_file_has_the_schema_of_the_original(tmp_path, source):
    words = ["--network", "mlp:width=8,depth=1", "--steps", "2", "--grid", "0"]
    assert main(["train", "--data", source, "--out", str(tmp_path / "run"), *words]) == 0
    out = tmp_path / "made.parquet"
    assert main(["sample", str(tmp_path / "run"), "--n", "40", "--steps", "2", "--out", str(out)]) == 0
    original, made = read(source), read(out)
    assert made.num_rows == 40
    assert made.schema.equals(original.schema)
    for name in ("text", "sort", "grade", "true", "few", "same"):
        assert set(made.column(name).to_pylist()) <= set(original.column(name).to_pylist())
    assert {moment.hour for moment in made.column("midnight").to_pylist()} == {0}
    for name in ("int8", "day", "moment", "zoned", "money"):
        before, after = (
            [value for value in table.column(name).to_pylist() if value is not None] for table in (original, made)
        )
        assert min(before) <= min(after) <= max(after) <= max(before)
    # Read by what is known of the columns, and in words.
    rows, _ = load(tmp_path / "run").data.rows(str(out))
    assert rows.shape == (40, len(original.column_names))


def test_a_table_of_texts_has_types_by_what_its_columns_are(tmp_path):
    rows = ["a,b,c,d,e", *(f"{k},{k / 4},2024-01-{k % 28 + 1:02d},{'xy'[k % 2]},0{k + 10}" for k in range(40))]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    loaded = Table.read(str(tmp_path / "a.csv"), held_out=0)
    loaded.kind.write(tmp_path / "b.parquet", loaded.train.x)
    made = read(tmp_path / "b.parquet")
    assert list(map(str, made.schema.types)) == ["int64", "double", "date32[day]", "string", "string"]
    assert made.column("e").to_pylist()[0] == "010"


def test_columns_that_may_not_be_null_stay_so(tmp_path):
    schema = pa.schema([pa.field("a", pa.float64(), nullable=False), ("b", pa.string())])
    table = pa.Table.from_arrays([pa.array([k / 4 for k in range(40)]), pa.array(["x", None] * 20)], schema=schema)
    loaded = Table.read(written(tmp_path / "a.parquet", table), held_out=0)
    loaded.kind.write(tmp_path / "b.parquet", loaded.train.x)
    assert read(tmp_path / "b.parquet").equals(table)


REAL = pa.array([k / 4 for k in range(20)])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"x": REAL, "tags": [["a"], ["b"]] * 10}, r"column tags is of type list<.*--ignore tags$"),
        ({"x": REAL, "at": [{"k": 1}] * 20}, r"column at is of type struct<k: int64>.*--ignore at$"),
        ({"x": REAL, "image": [{"bytes": b"a"}] * 20}, r"if these are pictures, give arrow:PATH"),
        ({"x": REAL, "t": [dt.time(1, k) for k in range(20)]}, r"column t is of type time64\[us\]"),
        ({"x": pa.array([*range(19), float("inf")])}, r"row 20, column x: 'inf' is infinite"),
        ({"x": pa.array([*range(19), float("-inf")])}, r"row 20, column x: '-inf' is infinite"),
        ({"x": REAL, "n": pa.nulls(20)}, "column n has no value in any row"),
        ({"x": pa.array([float("nan")] * 20), "y": REAL}, "column x has no value in any row"),
        ({"x": pa.array([], pa.float64())}, "holds no rows"),
        ({}, "holds no rows"),
        ({"x": REAL, "__index_level_0__": REAL}, r"column 2 has no name: .*index=False"),
        ({"x": pa.array([10**15] * 20, pa.timestamp("ms"))}, "column x, of type timestamp.ms., cannot be read"),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(tmp_path, columns, said):
    with pytest.raises(DataError, match=said) as caught:
        Table.read(written(tmp_path / "a.parquet", columns), held_out=0)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_left_out_may_be_of_any_type(tmp_path):
    source = written(tmp_path / "a.parquet", {"x": REAL, "tags": [["a"], ["b"]] * 10})
    assert [column.name for column in Table.read(source, ignore=["tags"]).kind.columns] == ["x"]


def test_two_columns_of_one_name_and_damaged_files_are_refused(tmp_path):
    twice = pa.Table.from_arrays([REAL, REAL, REAL], names=["a", "b", "a"])
    with pytest.raises(DataError, match="columns 1 and 3 are both named 'a': rename one of them"):
        Table.read(written(tmp_path / "a.parquet", twice))
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    for name, damaged in (("cut", content[:40]), ("none", b""), ("text", b"a,b\n1,x\n")):
        (tmp_path / f"{name}.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot be read .*; expected an intact parquet file$"):
            Table.read(str(tmp_path / f"{name}.parquet"))
    content[4:40] = bytes(36)
    (tmp_path / "inside.parquet").write_bytes(content)
    with pytest.raises(DataError):
        Table.read(str(tmp_path / "inside.parquet"))


def test_types_of_a_models_file_are_checked():
    word = "dictionary<values=string, indices=int8, ordered=0>"
    column = Column("a", "category", ("x", "y"), type=word, dictionary=("x", "y"))
    for wrong in ({"type": "list<int64>"}, {"dictionary": ("x",)}):
        with pytest.raises(ArgumentError, match="column 'a' cannot be written as"):
            replace(column, **{"dictionary": ("y", "x"), **wrong})
    assert replace(column, dictionary=("z", "y", "x")).written_as == column.type


@pytest.fixture(scope="module")
def lacking(tmp_path_factory):
    """A model of a table with gaps, and the table with a further column that the model does not know."""
    folder = tmp_path_factory.mktemp("lacking")
    choice = np.random.default_rng(1)
    sort = choice.choice(["ant", "bee", "cow"], NUMBER)
    columns = {
        "sort": pa.array([None if k % 9 == 0 else text for k, text in enumerate(sort)]).dictionary_encode(),
        "legs": pa.array([None if k % 10 == 1 else int(k) for k in choice.integers(0, 40, NUMBER)], pa.int16()),
        "weight": pa.array([None if k % 11 == 2 else float(k) for k in choice.normal(size=NUMBER)], pa.float32()),
    }  # fmt: skip
    days = [None if k % 12 == 3 else NOON + dt.timedelta(days=k) for k in range(NUMBER)]
    columns["seen"] = pa.array(days, pa.timestamp("ns", tz="UTC"))
    source = written(folder / "a.parquet", columns)
    words = ["--network", "mlp:width=8,depth=1", "--steps", "2", "--grid", "0"]
    assert main(["train", "--data", source, "--out", str(folder / "run"), *words]) == 0
    columns |= {"tags": pa.array([[k] for k in range(NUMBER)])}
    table = pa.table(columns).replace_schema_metadata({"from": "a test"})
    return folder, written(folder / "more.parquet", table)


def test_missing_cells_are_filled_and_all_else_stays_as_it_is(lacking):
    folder, source = lacking
    words = ["restore", source, "--model", folder / "run", "--nfe", 2, "--draws", 2, "--out", folder / "full.parquet"]
    assert main([*map(str, words)]) == 0
    before = read(source)
    for k in (1, 2):
        after = read(folder / f"full-{k}.parquet")
        assert after.schema.equals(before.schema, check_metadata=True)
        assert after.column("tags").equals(before.column("tags"))
        for name in ("sort", "legs", "weight", "seen"):
            for was, now in zip(before.column(name).to_pylist(), after.column(name).to_pylist(), strict=True):
                assert now == was if was is not None else now is not None, name
        assert after.column("sort").chunk(0).dictionary.equals(before.column("sort").chunk(0).dictionary)


def test_a_filled_text_that_a_dictionary_lacks_comes_after_the_others(tmp_path):
    words = pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.int8()), pa.array(["b ", "a"]), ordered=True)
    source = Path(written(tmp_path / "a.parquet", {"k": words}))
    write_filled(source, tmp_path / "b.parquet", {(1, "k"): "c", (2, "k"): "b"})
    found = read(tmp_path / "b.parquet").column("k").chunk(0)
    assert found.to_pylist() == ["a", "c", "b "]
    assert (found.dictionary.to_pylist(), found.type) == (["b ", "a", "c"], words.type)


def test_what_cannot_be_filled_or_written_is_refused(lacking, capsys):
    folder, source = lacking
    words = ["--model", str(folder / "run"), "--nfe", "1", "--out"]
    assert main(["restore", source, *words, str(folder / "full.csv")]) == 2
    assert "column tags is of type list" in capsys.readouterr().err
    assert main(["restore", source, *words, str(folder / "full.png")]) == 2
    assert "ending in .csv or .parquet" in capsys.readouterr().err
    table = read(source).drop_columns(["tags"])
    whole = table.set_column(2, "weight", pa.array([None if k % 9 == 0 else k for k in range(NUMBER)], pa.int8()))
    other = written(folder / "whole.parquet", whole)
    assert main(["restore", other, *words, str(folder / "whole-full.parquet")]) == 2
    assert "column weight is of type int8, in which a filled cell cannot be written" in capsys.readouterr().err
    assert not (folder / "whole-full.parquet").exists()
    (folder / "a.csv").write_text("sort,legs,weight,seen\nant,,1.5,2024-01-01 00:00:00\n")
    assert main(["restore", str(folder / "a.csv"), *words, str(folder / "b.parquet")]) == 2
    assert "must be a file ending in .csv for the table" in capsys.readouterr().err


def test_made_numbers_are_drawn_as_for_a_file_of_texts(tmp_path):
    """The types change how rows are written, and nothing of what is learnt."""
    numbers = [k / 8 for k in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y", *(f"{x},{'ab'[k % 2]}" for k, x in enumerate(numbers))]))
    source = written(tmp_path / "a.parquet", {"x": pa.array(numbers), "y": ["a", "b"] * 20})
    one, other = (Table.read(str(path)) for path in (tmp_path / "a.csv", source))
    assert torch.equal(one.train.x, other.train.x)
    assert torch.equal(one.kind.encode(one.train.x), other.kind.encode(other.train.x))
    assert one.kind.layout == other.kind.layout


def test_a_refusal_ends_the_process_with_its_own_status(tmp_path):
    # Threads of pyarrow that still ran at the end of a process aborted it, in about two of three cases.
    parquet.write_table(pa.table({"x": [0.5] * 9, "__index_level_0__": list(range(9))}), tmp_path / "index.parquet")
    words = [
        sys.executable,
        "-m",
        "proxflow.cli",
        "train",
        "--data",
        tmp_path / "index.parquet",
        "--out",
        tmp_path / "run",
    ]
    for _ in range(3):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_times_with_a_zone_are_not_written_as_text(lacking, capsys, tmp_path):
    folder, _ = lacking
    words = ["sample", str(folder / "run"), "--n", "4", "--steps", "1"]
    assert main([*words, "--out", str(tmp_path / "made.csv")]) == 2
    said = capsys.readouterr().err
    assert "the times of column seen have a zone, which text would lose: give a file ending in .parquet" in said
    assert main([*words, "--out", str(tmp_path / "made.parquet")]) == 0
    kind = load(folder / "run").data
    with pytest.raises(ArgumentError, match="column seen have a zone"):
        kind.write(tmp_path / "made.csv", kind.rows(str(tmp_path / "made.parquet"))[0])
    assert not (tmp_path / "made.csv").exists()


def test_pandas_reads_what_is_made_as_the_types_of_its_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    whole = np.arange(NUMBER)
    frame = pandas.DataFrame(
        {
            "id": pandas.array(whole, "Int32"),
            "count": pandas.array([None if k % 5 == 0 else int(k) for k in whole], "Int64"),
            "yes": pandas.array([None if k % 7 == 0 else bool(k % 2) for k in whole], "boolean"),
            "small": pandas.array(whole % 50, "Int8"),
            "real": pandas.array(whole / 8, "Float32"),
            "sort": pandas.Categorical(["ab"[k % 2] for k in whole]),
            "same": pandas.array([1] * NUMBER, "Int16"),
            "dropped": whole,
        }
    ).set_index("id")
    frame.to_parquet(tmp_path / "a.parquet")
    loaded = Table.read(str(tmp_path / "a.parquet"), held_out=0, ignore=["dropped"])
    save(tmp_path / "m", proxflow.build(loaded.kind, network="mlp:width=8", seed=0))
    load(tmp_path / "m").data.write(tmp_path / "b.parquet", loaded.train.x[:40])
    made = pandas.read_parquet(tmp_path / "b.parquet")
    original = pandas.read_parquet(tmp_path / "a.parquet")
    pandas.testing.assert_frame_equal(made, original.drop(columns="dropped").iloc[:40])
    plain = frame.reset_index(drop=True)
    plain.to_parquet(tmp_path / "c.parquet")
    loaded = Table.read(str(tmp_path / "c.parquet"), held_out=0)
    loaded.kind.write(tmp_path / "d.parquet", loaded.train.x[:40])
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "d.parquet"), plain.iloc[:40])


@pytest.mark.parametrize("kept", ["no JSON", "[1]", '{"columns": 1}', '{"columns": [1], "index_columns": []}'])
def test_a_damaged_note_of_pandas_is_left_out(tmp_path, kept):
    table = pa.table({"a": [k / 4 for k in range(40)], "b": ["x", "y"] * 20}).replace_schema_metadata({"pandas": kept})
    loaded = Table.read(written(tmp_path / "a.parquet", table), held_out=0)
    loaded.kind.write(tmp_path / "b.parquet", loaded.train.x)
    assert read(tmp_path / "b.parquet").schema.metadata is None
