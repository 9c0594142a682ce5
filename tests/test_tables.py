"""Tables: what columns are found to be, how rows go to networks and back, and what is refused."""

import csv
import json
import math
import re
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import proxflow
from proxflow.cli import main
from proxflow.data.kinds import kind_of_source
from proxflow.data.kinds.table import GAP, Column, Table
from proxflow.data.kinds.vector import Vector
from proxflow.errors import ArgumentError, DataError, ProxflowError
from proxflow.models import load, save, spec
from proxflow.testing import check_kind

HEADER = ["weight", "legs", "born", "seen", "sort", "age", "land"]


def animals(number=40, seed=0):
    """Rows of all roles: a number with two decimals, few and many whole numbers, a date, a time, a text, a constant."""
    choice = np.random.default_rng(seed)
    rows = []
    for k in range(number):
        sort = choice.choice(["cat", "dog", "ant"])
        rows.append(
            [
                f"{choice.normal(5, 2):.2f}",
                {"cat": "4", "dog": "4", "ant": "6"}[sort],
                f"20{k % 20:02d}-0{k % 9 + 1}-{k % 28 + 1:02d}",
                f"2024-01-01 0{k % 10}:{k % 60:02d}:07",
                sort,
                str(int(choice.integers(0, 15))),
                "here",
            ]
        )
    return rows


def text(path, rows, header=HEADER):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def cells(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def drawn(kind, number):
    """Return rows of a table of one column of numbers and one of categories, in stored form."""
    z = torch.randn(number, 2, generator=torch.Generator().manual_seed(0))
    z[:, 1] = (z[:, 1] > 0).float()
    return kind.decode(z)


# How cells are written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells_in", "made"),
    [
        ([f"{k}e-05" for k in range(1, 41)], "0.00021"),
        ([f"{k}.0e-3" for k in range(1, 41)], "0.0210"),
        ([f"{k / 8}" for k in range(1, 41)], "2.625"),
        ([f"0{1000 + k}" for k in range(1, 41)], "01021"),
        ([f"{k}e2" for k in range(1, 41)], "2100"),
        ([f"{k}e-30" for k in range(1, 41)], "2.1e-29"),
    ],
)
def test_numbers_are_written_with_the_decimals_and_zeros_of_the_column(tmp_path, cells_in, made):
    kind = Table.read(text(tmp_path / "a.csv", zip(cells_in, "ab" * 20, strict=True), ["a", "b"]), held_out=0.0).kind
    column = kind.columns[0]
    assert column.text(column.stored(cells_in[20])) == made
    drawn = kind.decode(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).abs())
    kind.write(tmp_path / "made.csv", drawn)
    for row in cells(tmp_path / "made.csv")[1:]:
        assert float(row[0]) == pytest.approx(float(column.text(column.stored(row[0]))))
        assert len(row[0]) <= max(map(len, [*cells_in, "0.00040", "0.0400", "4000"])) or made.endswith("e-29")


def digits(cell):
    return len(Decimal(cell).normalize().as_tuple().digits)


@pytest.mark.parametrize(
    ("form", "most"), [(".3e", 4), (".0e", 1), ("r", 17), (".18e", 17), (".4g", 4), (".6g", 6), ("single", 9)]
)
@pytest.mark.parametrize("numbers", ["standard", "quantiles"])
def test_made_numbers_have_no_more_digits_than_those_of_training(tmp_path, form, most, numbers):
    x = np.random.default_rng(0).lognormal(0, 6, 300)
    cells_in = [str(np.float32(v)) if form == "single" else repr(float(v)) if form == "r" else f"{v:{form}}" for v in x]
    rows = [[cell, "ab"[k % 2]] for k, cell in enumerate(cells_in)]
    kind = Table.read(text(tmp_path / "a.csv", rows, ["x", "b"]), held_out=0, numbers=numbers).kind
    kind.write(tmp_path / "b.csv", drawn(kind, 300))
    made = [row[0] for row in cells(tmp_path / "b.csv")[1:]]
    assert max(map(digits, made)) <= most
    rows, _ = kind.rows(str(tmp_path / "b.csv"))
    assert float(rows[:, 0].min()) >= kind.columns[0].least
    assert float(rows[:, 0].max()) <= kind.columns[0].most


def test_decimals_of_large_numbers_end_where_doubles_do(tmp_path):
    rows = [[f"{k * 1234.5678:.17f}", "ab"[k % 2]] for k in range(1, 60)]
    kind = Table.read(text(tmp_path / "a.csv", rows, ["x", "b"]), held_out=0).kind
    kind.write(tmp_path / "b.csv", drawn(kind, 60))
    made = [row[0] for row in cells(tmp_path / "b.csv")[1:]]
    assert {len(cell.partition(".")[2]) for cell in made} == {17}
    assert max(map(digits, made)) <= 17


@pytest.mark.parametrize("wrong", ["2024-02-30", "2024-2-5", "05.02.2024"])
def test_one_cell_that_is_no_date_among_dates_is_named(tmp_path, wrong):
    rows = [(f"2024-01-{k:02d}", "x") for k in range(1, 31)] + [(wrong, "y")]
    with pytest.raises(DataError, match=rf"line 32, column when: '{wrong}' is no date, as 30 other cells"):
        Table.read(text(tmp_path / "a.csv", rows, ["when", "b"]))
    found = Table.read(text(tmp_path / "b.csv", [*rows] * 2, ["when", "b"]), categories=["when"])
    assert found.kind.columns[0].role == "category"


FORMS = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("number", "minutes"), [(40, 15), (40, 60), (6, 1)])
def test_times_keep_their_step_and_their_form(tmp_path, form, number, minutes):
    choice = np.random.default_rng(0)
    begin = datetime(2024, 1, 1, 9, 30)
    times = [
        begin + timedelta(minutes=15 * int(k) if minutes < 60 else 60 * int(k))
        for k in choice.integers(0, 9000, number)
    ]
    source = text(tmp_path / "a.csv", [[f"{t:{form}}", "ab"[k % 2]] for k, t in enumerate(times)], ["when", "b"])
    loaded = Table.read(source, held_out=0)
    loaded.kind.write(tmp_path / "same.csv", loaded.kind.decode(loaded.kind.encode(loaded.train.x)))
    assert cells(tmp_path / "same.csv") == cells(source)
    loaded.kind.write(tmp_path / "made.csv", drawn(loaded.kind, 300))
    made = [row[0] for row in cells(tmp_path / "made.csv")[1:]]
    moments = [datetime.strptime(cell, form) for cell in made]
    assert set(made) == {f"{moment:{form}}" for moment in moments}
    assert len(set(moments)) > 100
    assert min(times) <= min(moments) <= max(moments) <= max(times)
    assert all((moment - begin) % timedelta(minutes=minutes) == timedelta() for moment in moments)


def test_a_model_without_steps_and_forms_of_times_makes_them_as_it_did():
    held = Column("when", "date", decimals=1, least=0.0, most=2.0, mean=1.0, std=1.0)  # as an earlier version kept it
    assert held.text(float(held.decode(torch.tensor([0.1234567]).double()))) == "1970-01-02 02:57:47"
    number = Column("x", "number", decimals=5, trimmed=True, least=0.0, most=2000.0, mean=1000.0, std=1.0)
    assert number.text(float(number.decode(torch.tensor([0.1234567]).double()))) == "1000.12346"


def test_days_keep_their_step(tmp_path):
    rows = [[f"{datetime(2024, 1, 1) + timedelta(weeks=k):%Y-%m-%d}", "ab"[k % 2]] for k in range(60)]
    kind = Table.read(text(tmp_path / "a.csv", rows, ["monday", "b"]), held_out=0).kind
    kind.write(tmp_path / "b.csv", drawn(kind, 200))
    assert {datetime.fromisoformat(row[0]).weekday() for row in cells(tmp_path / "b.csv")[1:]} == {0}


def test_times_of_several_forms_are_made_in_that_of_most(tmp_path):
    rows = [[f"2024-01-{k:02d}T0{k % 10}:30", "ab"[k % 2]] for k in range(1, 21)]
    rows += [["2024-02-01", "a"]] * 30 + [["2024-02-02 05:00:30", "b"]]
    kind = Table.read(text(tmp_path / "a.csv", rows, ["when", "b"]), held_out=0).kind
    kind.write(tmp_path / "b.csv", drawn(kind, 50))
    assert {(len(row[0]), row[0][10]) for row in cells(tmp_path / "b.csv")[1:]} == {(16, "T")}
    with pytest.raises(ArgumentError, match="no time of day is written as 'x'"):
        replace(kind.columns[0], clock="x")


@pytest.mark.parametrize("zone", ["Z", "+02:00", "+0200", " UTC", "-05"])
@pytest.mark.parametrize("others", [0, 10])
def test_times_with_a_zone_are_named_as_such(tmp_path, zone, others):
    rows = [[f"2024-01-{k % 28 + 1:02d}T10:{k:02d}:00{zone if k >= others else ''}", "xy"[k % 2]] for k in range(60)]
    source = text(tmp_path / "a.csv", rows, ["when", "b"])
    with pytest.raises(
        DataError,
        match=rf"line {others + 2}, column when: '2024-\S+.*' is a time with a zone, which .*without the zone",
    ) as caught:
        Table.read(source)
    assert "\n" not in str(caught.value)
    assert Table.read(source, ignore=["when"], categories=["b"]).kind.columns[0].role == "category"


# Which kind ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("a,b\n1.5,2.5\n", Vector),
        ("1,2\n3,4\n", Vector),  # no names
        ("a,b\n1.5,2\n2.5,3\n", Table),  # whole numbers stay whole
        ("a,b\n1.5,x\n", Table),
        ("a,b\n1.5,\n", Table),
        ("a;b\n1;x\n", Vector),  # which says what is wrong
        ("a,b\n1,x\n1\n", Table),
        ("a,b\n", Vector),
    ],
)
def test_a_file_with_more_than_real_numbers_is_a_table(tmp_path, content, kind):
    (tmp_path / "a.csv").write_text(content)
    assert kind_of_source(str(tmp_path / "a.csv")) is kind


@pytest.mark.parametrize("kind", ["vector", "table"])
def test_rows_are_written_to_a_path_that_is_text(tmp_path, kind):
    source = text(tmp_path / "a.csv", [[f"{k / 4}", f"{k}"] for k in range(30)], ["a", "b"])
    loaded = kind_of_source(source, kind).read(source, held_out=0)
    loaded.kind.write(str(tmp_path / "b.csv"), loaded.train.x)
    assert [[float(cell) for cell in row] for row in cells(tmp_path / "b.csv")[1:]] == loaded.train.x.tolist()


def test_it_keeps_the_contract_of_kinds(tmp_path):
    rows = [[a, c, d, e, k] for k, (a, _, c, d, e, *_) in zip(["x", "y", ""] * 20, animals(), strict=False)]
    source = text(tmp_path / "a.csv", rows, ["weight", "born", "seen", "sort", "gap"])
    check_kind(Table, source, ".csv")
    check_kind(Table, source, ".csv", numbers="quantiles")


def test_columns_are_what_the_rules_say(tmp_path):
    rows = animals()
    rows[3][0] = rows[5][4] = "NA"
    kind = Table.read(text(tmp_path / "a.csv", rows), held_out=0).kind
    found = {column.name: column for column in kind.columns}
    roles = ["number", "category", "date", "date", "category", "integer", "constant"]
    assert [column.role for column in kind.columns] == roles
    assert found["legs"].categories == ("4", "6")
    assert found["sort"].categories == ("ant", "cat", "dog")
    assert (found["weight"].missing, found["sort"].missing, found["age"].missing) == ("NA", "NA", None)
    assert found["weight"].decimals == 2
    assert (found["born"].decimals, found["seen"].decimals) == (0, 1)
    # numbers; whether weight is missing; legs and sort, of two and four classes
    assert kind.shape == (4 + 1 + 2,)
    forced = Table.read(text(tmp_path / "a.csv", rows), held_out=0, categories=["age"], ignore=["born"]).kind
    assert "born" not in {column.name for column in forced.columns}
    assert next(column for column in forced.columns if column.name == "age").role == "category"


def test_the_first_line_says_what_the_columns_are(tmp_path):
    rows = animals()
    rows[3][0] = ""
    notes = Table.read(text(tmp_path / "a.csv", rows), target="sort").notes
    assert notes[0].endswith(
        "a.csv: numbers weight; whole numbers age; dates born, seen; categories legs (2), sort (3); with missing cells "
        "weight; target sort"
    )
    assert "land has one value, 'here'" in notes[1]


MANY = [str(k) for k in range(100)]


def noted(tmp_path, column, **told):
    """Return the notes on a table whose column x has these cells, without the one on what the columns are."""
    rows = [[cell, f"{k / 7:.3f}"] for k, cell in enumerate(column)]
    return Table.read(text(tmp_path / "a.csv", rows, ["x", "b"]), held_out=0, **told).notes[1:]


WEEK = [datetime(2024, 1, 29) + timedelta(days=k) for k in range(15)]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([f"{k % 20}%" for k in range(99)], "99 of 99 cells look like percentages: write 12% as 12"),
        ([f"{k % 20}.5 %" if k else "none" for k in range(99)], "98 of 99 cells look like percentages"),
        ([f"({k % 9})" if k % 3 else "12" for k in range(90)], "60 of 90 cells look like numbers in brackets.*as -51"),
        ([f"${k % 9}.50" for k in range(90)], "90 of 90 cells look like amounts of money"),
        ([f"{k % 9} €" for k in range(90)], "90 of 90 cells look like amounts of money"),
        ([f"{k % 9},50" for k in range(90)], "90 of 90 cells look like numbers with commas"),
        ([f"{k % 9 + 1},000.5" for k in range(90)], "90 of 90 cells look like numbers with commas"),
        ([f"{t.year}-{t.month}-{t.day}" for t in WEEK * 4], "60 of 60 cells look like dates: write them as 2024-12-31"),
        ([f"{t:%d/%m/%Y}" for t in WEEK * 4], "60 of 60 cells look like dates"),
        ([f"{t:%d.%m.%y}" for t in WEEK * 4], "60 of 60 cells look like dates"),
        ([f"{k % 9}:30" for k in range(90)], "90 of 90 cells look like times of day"),
        ([f"{t:%Y%m%d}" for t in WEEK * 4], "looks like dates written 20240131: write 2024-01-31"),
        (
            [("00", "1", "02", "31")[k % 4] for k in range(40)] + MANY[10:30],
            "as '00', .*write all equally long, or .*--categories x$",
        ),
    ],
)
def test_what_a_column_seems_to_be_and_is_not_taken_for_is_said(tmp_path, column, said):
    (note,) = noted(tmp_path, column)
    assert re.search(rf"a\.csv: column x .*{said}", note)
    assert "\n" not in note


@pytest.mark.parametrize(
    "column",
    [
        [f"{k % 28 + 1}" for k in range(90)],
        ["low", "50%", "high"] * 30,
        [f"{20240000 + k}" for k in range(90)],  # one is no day
        [f"0{1000 + k}" for k in range(90)],  # keeps its zeros
        ["2024-01-01", "2024-01-03", "2024-01-04"] * 30,
        ["1:a", "2:b"] * 30,
    ],
)
def test_of_other_columns_nothing_is_said(tmp_path, column):
    assert noted(tmp_path, column) == ()


def test_of_a_column_that_is_asked_for_as_categories_nothing_is_said(tmp_path):
    column = [f"{k % 20}%" for k in range(99)]
    assert noted(tmp_path, column, categories=["x"]) == noted(tmp_path, column, target="x") == ()


def test_a_long_tail_alone_is_learnt_by_quantiles(tmp_path):
    choice = np.random.default_rng(0)
    rows = [
        f"{x:.2f},{y:.2f}" for x, y in zip([*choice.lognormal(3, 1, 499), 1e6], choice.normal(size=500), strict=True)
    ]
    (tmp_path / "a.csv").write_text("\n".join(["x,y", *rows]) + "\n", encoding="utf-8")
    known = [bool(c.knots) for c in Table.read(str(tmp_path / "a.csv"), held_out=0).kind.columns]
    assert known == [True, False]
    for numbers, expected in (("standard", [False, False]), ("quantiles", [True, True])):
        kind = Table.read(str(tmp_path / "a.csv"), held_out=0, numbers=numbers).kind
        assert [bool(c.knots) for c in kind.columns] == expected
    # Half of them lie below 20, and so do half of those made of normal numbers; by a standard scale all were at one end.
    kind = Table.read(str(tmp_path / "a.csv"), held_out=0).kind
    made = kind.values(kind.decode(torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))))[:, 0]
    assert np.mean(made < math.exp(3)) == pytest.approx(0.5, abs=0.05)


def test_columns_with_a_long_tail_are_named(tmp_path):
    choice = np.random.default_rng(0)
    for number in (50, 1000):
        tail = [*choice.lognormal(0, 1, number - 1), 1e6]
        (note,) = noted(tmp_path, [f"{x:.2f}" for x in tail])
        assert re.search(r"a\.csv: numbers with a long tail, which are learnt by their quantiles: x", note)
        (note,) = noted(tmp_path, [f"{x:.2f}" for x in tail], numbers="standard")
        assert re.search(r"a\.csv: numbers with a long tail: x; .* leave --numbers out", note)
        assert noted(tmp_path, [f"{x:.2f}" for x in tail], numbers="quantiles") == ()
        for law in (choice.normal, choice.exponential, choice.uniform, choice.laplace):
            assert noted(tmp_path, [f"{x:.4f}" for x in law(size=number)]) == ()
        assert noted(tmp_path, [str(x) for x in choice.poisson(30, number)]) == ()
        assert (
            noted(tmp_path, [str(x) for x in choice.choice([-1000, 1000], number) + choice.integers(0, 99, number)])
            == ()
        )


@pytest.mark.parametrize("mark", ["#N/A", "<NA>", "NA", "null", "?"])
def test_marks_of_other_programs_are_missing_cells(tmp_path, mark):
    rows = [[mark if k % 5 == 0 else "ab"[k % 2], mark if k % 7 == 0 else f"{k / 4}"] for k in range(40)]
    columns = Table.read(text(tmp_path / "a.csv", rows, ["sort", "x"]), held_out=0).kind.columns
    assert [(column.role, column.missing) for column in columns] == [("category", mark), ("number", mark)]
    assert columns[0].categories == ("a", "b")


# There and back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", ["standard", "quantiles"])
def test_what_is_written_is_what_was_read(tmp_path, numbers):
    rows = animals()
    rows[0][0], rows[1][4], rows[2][2], rows[3][5] = "", "", "", ""
    source = text(tmp_path / "a.csv", rows)
    loaded = Table.read(source, held_out=0, numbers=numbers)
    kind, x = loaded.kind, loaded.train.x
    encoded = kind.encode(x)
    assert encoded.isfinite().all()
    back = kind.decode(encoded)
    torch.testing.assert_close(back, x)
    kind.write(tmp_path / "b.csv", back)
    assert cells(tmp_path / "b.csv") == cells(source)


def test_standardised_numbers_have_mean_zero_and_variance_one(tmp_path):
    kind, x = (lambda loaded: (loaded.kind, loaded.train.x))(
        Table.read(text(tmp_path / "a.csv", animals(200)), held_out=0)
    )
    encoded = kind.encode(x)[:, :4].double()
    torch.testing.assert_close(encoded.mean(0), torch.zeros(4).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded.std(0, correction=0), torch.ones(4).double(), atol=1e-5, rtol=0)


def test_quantiles_make_any_law_nearly_normal():
    x = torch.from_numpy(np.random.default_rng(0).lognormal(0, 2, 5000))
    knots = tuple(torch.quantile(x, torch.linspace(0, 1, 201).double()).tolist())
    column = Column("a", "number", least=float(x.min()), most=float(x.max()), knots=knots)
    assert stats.kstest(column.encode(x).numpy(), "norm").statistic < 0.01
    torch.testing.assert_close(column.decode(column.encode(x)), x, rtol=1e-6, atol=1e-9)


def test_a_value_of_many_rows_keeps_its_share_by_quantiles():
    x = torch.cat([torch.zeros(400), torch.linspace(1, 2, 600)]).double()
    knots = tuple(torch.quantile(x, torch.linspace(0, 1, 201).double()).tolist())
    column = Column("a", "number", least=0.0, most=2.0, knots=knots)
    drawn = column.decode(torch.randn(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert float((drawn == 0).double().mean()) == pytest.approx(0.4, abs=0.02)


@given(
    z=st.lists(st.floats(-50, 50), min_size=1, max_size=20),
    decimals=st.integers(0, 3),
    role=st.sampled_from(["number", "integer"]),
)
@settings(max_examples=40, deadline=None)
def test_decoded_numbers_lie_in_the_range_and_have_the_decimals(z, decimals, role):
    column = Column("a", role, decimals=decimals, least=-3.0, most=11.0, mean=2.0, std=4.0)
    x = column.decode(torch.tensor(z, dtype=torch.float64))
    assert float(x.min()) >= -3
    assert float(x.max()) <= 11
    for value in x.tolist():
        shown = column.text(value)
        assert len(shown.partition(".")[2]) == decimals
        assert float(shown) == pytest.approx(value, abs=1e-9)
        assert role == "number" or value == round(value)


def test_numbers_keep_the_distance_of_their_values(tmp_path):
    choice = np.random.default_rng(0)
    rows = [[f"{100 + 25 * choice.integers(0, 40)}.0", f"{choice.integers(0, 99) * 0.05:.2f}"] for _ in range(100)]
    kind = Table.read(text(tmp_path / "a.csv", rows, ["mass", "dose"]), held_out=0).kind
    assert [column.step for column in kind.columns] == [250, 5]  # counted in the last digit
    kind.write(tmp_path / "b.csv", drawn(kind, 200))
    for mass, dose in cells(tmp_path / "b.csv")[1:]:
        assert mass.endswith(".0")
        assert float(mass) % 25 == 0
        assert dose[-1] in "05"


def test_zeros_are_left_out_where_the_original_leaves_them_out(tmp_path):
    rows = [[f"{k / 4:g}", f"{k / 4:.2f}"] for k in range(-40, 40)]
    source = text(tmp_path / "a.csv", rows, ["short", "long"])
    loaded = Table.read(source, held_out=0)
    loaded.kind.write(tmp_path / "b.csv", loaded.kind.decode(loaded.kind.encode(loaded.train.x)))
    assert cells(tmp_path / "b.csv") == cells(source)


def test_numbers_that_occur_again_and_again_are_those_that_are_made(tmp_path):
    # Pressures: most are whole, some are means of three; each is there often. Heights: each is there once.
    choice = np.random.default_rng(0)
    pressures = choice.choice([70.0, 80.0, 83.67, 90.0, 96.33], 200)
    rows = [[f"{p:g}", f"{choice.normal(170, 10):.6f}", "ab"[k % 2]] for k, p in enumerate(pressures)]
    kind = Table.read(text(tmp_path / "a.csv", rows, ["pressure", "height", "sort"])).kind
    pressure, height = kind.columns[:2]
    assert pressure.values == (70.0, 80.0, 83.67, 90.0, 96.33)
    assert height.values == ()
    z = torch.linspace(-3, 3, 401, dtype=torch.float64)
    drawn = pressure.decode(z)
    wanted = pressure.mean + pressure.std * z
    held = torch.tensor(pressure.values, dtype=torch.float64)
    nearest = held[(wanted[:, None] - held).abs().argmin(1)]
    torch.testing.assert_close(drawn, nearest, rtol=0, atol=0)
    assert len(torch.unique(height.decode(z))) > 300
    with pytest.raises(ArgumentError, match="values must rise"):
        replace(pressure, values=(2.0, 1.0))


def test_numbers_of_more_digits_than_are_kept_are_refused(tmp_path):
    rows = [[str(2**60 + k % 50), "ab"[k % 2]] for k in range(400)]
    source = text(tmp_path / "a.csv", rows, ["id", "sort"])
    with pytest.raises(DataError, match=r"line 3, column id: '1152921504606846977' has more digits .* --categories id"):
        Table.read(source)
    assert Table.read(source, categories=["id"]).kind.columns[0].classes == 50
    whole = [[str(2**60 + 2**20 * k), "ab"[k % 2]] for k in range(400)]
    assert Table.read(text(tmp_path / "b.csv", whole, ["id", "sort"])).kind.columns[0].role == "integer"


def test_a_model_of_a_table_is_saved_and_loaded_with_all_that_decodes(tmp_path):
    rows = animals()
    rows[0][0] = ""
    kind = Table.read(text(tmp_path / "a.csv", rows), target="sort").kind
    model = proxflow.build(kind, network="mlp:classes=3,width=8", seed=0)
    save(tmp_path / "m", model)
    assert load(tmp_path / "m").data == kind
    assert load(tmp_path / "m").classes == ("ant", "cat", "dog")
    labels = torch.tensor([0, 1, 2])
    drawn = kind.labelled(model.sample(3, nfe=2, condition=labels), labels)
    kind.write(tmp_path / "made.csv", drawn)
    header, *made = cells(tmp_path / "made.csv")
    assert header == HEADER
    assert [row[4] for row in made] == ["ant", "cat", "dog"]


def test_labels_are_drawn_as_often_as_in_training_whatever_their_number(tmp_path):
    rows = [["a", "1.5"]] * 60 + [["b", "2.5"]] * 30 + [["c", "3.5"]] * 10
    kind = Table.read(text(tmp_path / "a.csv", rows, ["k", "x"]), held_out=0, target="k").kind
    labels = kind.drawn_labels(20000, 3)
    shares = torch.bincount(labels, minlength=3) / len(labels)
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0)
    assert torch.equal(kind.drawn_labels(100, 3), labels[:100])
    assert not torch.equal(kind.drawn_labels(100, 4), labels[:100])


# Flows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flow", "divergence"),
    [
        (None, "per-part"),
        ("gpfn-fisher-rao", "fisher-rao"),
        ("gpfn:divergence=reverse-kl", "reverse-kl"),
    ],
)
def test_flows_by_name_take_the_endpoints_of_the_table(tmp_path, flow, divergence):
    kind = Table.read(text(tmp_path / "a.csv", animals())).kind
    model = proxflow.build(kind, flow=flow, network="mlp:width=8", seed=0)
    assert spec.describe(model.flow)["divergence"]["kind"] == divergence
    assert model.sample(2, nfe=2).shape == (2, len(HEADER))


def test_flows_that_do_not_serve_tables_are_refused(tmp_path):
    kind = Table.read(text(tmp_path / "a.csv", animals())).kind
    tables = "and these are none: take gpfn, gpfn-linear or gpfn-fisher-rao$"
    for flow, said in (
        ("gpfn-w2", "not defined"),
        ("bfn", "bfn is a flow of values of one sort, and these rows have several: take gpfn, gpfn-linear"),
        ("diffusion", "diffusion is a flow of values of one sort"),
        (
            "gpfn-kl",
            "toward a certain class, which rows may have, a step of KL ends there at once.*: take gpfn, gpfn-linear",
        ),
        ("masked", f"^the flow masked is for data of classes, as text or binary images, {tables}"),
        ("bfn-discrete", f"^the flow bfn-discrete is for data of classes.* {tables}"),
        ("bfn-discretised", f"^the flow bfn-discretised is for images, whose values lie in bins, {tables}"),
    ):
        with pytest.raises(ArgumentError, match=said):
            proxflow.build(kind, flow=flow)
    with pytest.raises(ArgumentError, match=r"these are none: take gpfn-w2, bfn or diffusion$"):
        proxflow.build((2,), flow="masked")
    for flow in ("gpfn", "gpfn-linear", "gpfn-fisher-rao"):  # those that are named
        proxflow.build(kind, flow=flow, network="mlp:width=8")


def test_the_command_refuses_a_flow_that_is_not_for_tables(tmp_path, capsys):
    source = text(tmp_path / "a.csv", animals())
    assert main(["train", "--data", source, "--flow", "masked", "--out", str(tmp_path / "run")]) == 2
    assert "the flow masked is for data of classes" in capsys.readouterr().err


# What is refused ----------------------------------------------------------------------------------------------------


def rows_of(*columns):
    return "\n".join(",".join(row) for row in zip(*columns, strict=True)) + "\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n" + rows_of(MANY, [f"n{k}" for k in MANY]), "column b has 100 different texts in 100 rows.*--ignore b"),
        ("a,b\n1,\n2,NA\n", "column b has no value in any row.*--ignore b"),
        ("a,b\n1,2\n2,3\nx,4\n", "line 4, column a: 'x' is no number, as 2 other cells.*--categories a"),
        ("a,b\n1,x\n2,x\ninf,y\n", "line 4, column a: 'inf' is infinite"),
        ("a,b,a\n1,x,2\n", "columns 1 and 3 are both named 'a'"),
        ("a,\n1,x\n", "column 2 has no name"),
        ("a,b,\n1,x,\n2,y,\n", "column 3 has no name: the first line ends in a comma: remove the commas at the ends"),
        ("a,,c\n1,x,2\n", "column 2 has no name: name it in the first line$"),
        (",a\n1,x\n", "column 1 has no name: if these are numbers of rows, .*index=False"),
        ("sep=,\na,b\n1,x\n", "line 1 is 'sep=', which Excel writes; expected names of columns: remove the line$"),
        ("sep=,\na,b,c\n1,x,2\n", "line 1 is 'sep=', which Excel writes"),
        ("sep=;\na;b\n1;x\n", "line 1 is 'sep=;', which Excel writes"),
        ("a\tb\n1\tx\n", "line 1: expected commas between the columns; this file has tabs: save it with commas"),
        (
            "a,b\n" + rows_of(MANY, [f"${k}.5" for k in MANY]),
            r"as '\$0.5', too many .*money, so write \$5.00 as 5.00, or",
        ),
        ("a,b\n" + rows_of(MANY, [f"{k}:30" for k in MANY]), "as '0:30', too many .*look like times of day"),
        ("a,b\n" + rows_of(MANY, [f"word {k}" for k in MANY]), "as 'word 0', too many .*: write numbers as 1000.5"),
        ("a,b\n1,x\n2\n", "line 3 has 1 cell; expected 2"),
        ("a,b\n1,x\n2,y,z\n", "line 3 has 3 cells; expected 2"),
        ("", "is empty"),
        ("a,b\n", "holds names and no rows"),
        ("a;b\n1;x\n", "line 1: expected commas between the columns; this file has semicolons: save it"),
        ("1.5,x\n2.5,y\n", "line 1 holds the number 1.5 in column 1; expected the names"),
        ("a,b\nx,y\nx,y\n", "no column is left to learn"),
        (
            "a\n1e308\n-1.2e308\n0.5\n",
            r"line 3, column a: '-1\.2e308' is too large, .* from -1\.2e\+308 to 1e\+308: correct it, .*--ignore a",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_sentence_with_the_place(tmp_path, content, said):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        Table.read(str(tmp_path / "a.csv"), held_out=0)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_asked_for_as_categories_are_refused_by_the_option(tmp_path):
    source = text(tmp_path / "a.csv", [[f"{k / 4}", "ab"[k % 2]] for k in range(60)], ["score", "b"])
    with pytest.raises(
        DataError, match=r"60 different values .* a target must be of categories .*another --target"
    ) as caught:
        Table.read(source, target="score")
    assert "--ignore" not in str(caught.value)
    with pytest.raises(
        DataError, match=r"60 different texts in 60 rows, as '0\.0', too many .*: take it out of --categories"
    ):
        Table.read(source, categories=["score"])


@pytest.mark.parametrize("content", ["sep=,\na,b\n1,x\n", "sep=,\na,b,c\n1,2,3.5\n", "sep=;\na;b\n1;2\n", "a;b\n1;2\n"])
def test_what_a_file_says_of_its_marks_is_refused_by_whichever_kind_takes_it(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    for kind in (None, "table"):
        with pytest.raises(DataError, match=r"line 1.*(remove the line|save it with commas)"):
            kind_of_source(str(tmp_path / "a.csv"), kind).read(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kind", [None, "vector", "table"])
def test_a_quote_that_is_not_closed_is_named_by_the_line_it_opens_in(tmp_path, end, last, kind):
    lines = ["a,b", '"1","2', '"', "", '2,"3', *(f"{k},5" for k in range(60))]
    path = tmp_path / "a.csv"
    path.write_bytes((end.join(lines) + end * last).encode())
    with pytest.raises(DataError, match=r"line 5: the quote before '3' is not closed: close or remove it$") as caught:
        kind_of_source(str(path), kind).read(str(path))
    assert "\n" not in str(caught.value)
    path.write_bytes(end.join([*lines, *["4,5"] * 40000]).encode())
    with pytest.raises(DataError, match=r"line 5: the quote .* is not closed within 131072"):
        kind_of_source(str(path), kind).read(str(path))
    path.write_bytes(end.join([*lines[:4], '2,"3"']).encode())
    assert len(kind_of_source(str(path), kind).read(str(path), held_out=0).train) == 2


def table_of(path, numbers):
    path.write_text("\n".join(["a,b", *(f"{number},{'xy'[k % 2]}" for k, number in enumerate(numbers))]))
    return str(path)


@pytest.mark.parametrize("seed", range(4))
def test_numbers_too_far_apart_are_refused_whichever_rows_are_held_out(tmp_path, seed):
    source = table_of(tmp_path / "a.csv", ["1.7e308", "-1.7e308", *(k + 0.5 for k in range(8))])
    with pytest.raises(DataError, match=r"line 2, column a: '1\.7e308' is too large"):
        Table.read(source, held_out=0.5, seed=seed)


def test_a_number_is_refused_that_the_rows_trained_on_make_infinite(tmp_path):
    source = table_of(tmp_path / "a.csv", ["1e300", *(k + 0.5 for k in range(9))])
    read = 0
    for seed in range(6):
        held = torch.randperm(10, generator=torch.Generator().manual_seed(seed))[:5].tolist()
        if 0 in held:
            with pytest.raises(DataError, match=r"line 2, column a: '1e300' lies \S+ standard deviations.*quantiles"):
                Table.read(source, held_out=0.5, seed=seed)
        loaded = Table.read(source, held_out=0.5, seed=seed, numbers="quantiles" if 0 in held else "standard")
        assert loaded.kind.encode(loaded.held_out.x).isfinite().all()
        read += 0 in held
    assert 0 < read < 6


def test_other_encodings_missing_files_and_names_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("a,b\né,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="is no UTF-8 text"):
        Table.read(str(tmp_path / "a.csv"))
    with pytest.raises(DataError, match="does not exist"):
        Table.read(str(tmp_path / "b.csv"))
    source = text(tmp_path / "c.csv", animals())
    for told in ({"ignore": ["nothing"]}, {"categories": ["nothing"]}, {"target": "nothing"}):
        with pytest.raises(ArgumentError, match="no column 'nothing'"):
            Table.read(source, **told)
    with pytest.raises(DataError, match="the target land has one value"):
        Table.read(source, target="land")
    with pytest.raises(ArgumentError, match="no setting"):
        Table.read(source, size=3)


def test_rows_of_another_file_are_held_to_the_columns(tmp_path):
    kind = Table.read(text(tmp_path / "a.csv", animals()), held_out=0).kind
    rows = animals(5, seed=1)
    rows[2][4] = ""
    shuffled = [[row[k] for k in (6, 5, 4, 3, 2, 1, 0)] + ["more"] for row in rows]
    x, _ = kind.rows(text(tmp_path / "b.csv", shuffled, [*HEADER[::-1], "further"]))
    assert kind.missing(x).nonzero().tolist() == [[2, 4]]
    rows[3][4] = "cow"
    with pytest.raises(
        DataError, match=r"line 5, column sort: 'cow' is not what the column holds; expected one of ant"
    ):
        kind.rows(text(tmp_path / "b.csv", rows))
    with pytest.raises(DataError, match="has no column 'land'"):
        kind.rows(text(tmp_path / "b.csv", [row[:-1] for row in rows], HEADER[:-1]))


ANY = ["", "NA", "1", "2.5", "-3e4", "nan", "inf", "x", "2024-01-01", '"', ",", "é", "\0"]


@given(st.lists(st.lists(st.sampled_from(ANY), max_size=4), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_or_refused_by_a_sentence(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "a.csv"
    path.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    Table.takes(str(path))
    try:
        loaded = Table.read(str(path), held_out=0)
    except ProxflowError:
        return
    assert loaded.kind.encode(loaded.train.x).isfinite().all()
    torch.testing.assert_close(loaded.kind.decode(loaded.kind.encode(loaded.train.x)), loaded.train.x)


def test_missing_numbers_are_finite_in_stored_form():
    assert math.isfinite(GAP)
    values = Table((1,), (Column("a", "number"),)).values(torch.tensor([[GAP], [1.0]], dtype=torch.float64))
    assert np.isnan(values[0, 0])
    assert values[1, 0] == 1


# The commands -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained by the command for two steps, and its table, in which cells are missing."""
    folder = tmp_path_factory.mktemp("trained")
    rows = animals(60)
    for k in range(0, 60, 6):
        rows[k][4] = ""
        rows[k + 1][0] = "NA"
    source = text(folder / "a.csv", rows)
    words = [
        "train",
        "--data",
        source,
        "--out",
        folder / "run",
        "--network",
        "mlp:width=8,depth=1",
        "--steps",
        2,
        "--grid",
        4,
    ]
    assert main([*map(str, words)]) == 0
    assert (
        main([*map(str, [*words, "--out", folder / "by-land", "--target", "legs", "--held-out", 0.4, "--grid", 0])])
        == 0
    )
    return folder, source


def test_made_tables_have_the_columns_of_the_original(trained):
    folder, source = trained
    assert main(["sample", str(folder / "run"), "--n", "50", "--steps", "2", "--out", str(folder / "made.csv")]) == 0
    header, *made = cells(folder / "made.csv")
    first, *original = cells(source)
    assert header == first
    assert len(made) == 50
    for k in (1, 4, 6):
        assert {row[k] for row in made} <= {row[k] for row in original}
    ages = [int(row[5]) for row in original]
    assert all(min(ages) <= int(row[5]) <= max(ages) for row in made)
    assert {len(row[2]) for row in made} == {10}
    rows, _ = load(folder / "run").data.rows(str(folder / "made.csv"))
    assert rows.shape == (50, len(HEADER))
    assert list((folder / "run" / "samples").iterdir())


def test_rows_are_drawn_for_a_category_that_is_asked_for(trained):
    folder, _ = trained
    run = str(folder / "by-land")
    assert main(["sample", run, "--class", "6", "--n", "5", "--steps", "2", "--out", str(folder / "six.csv")]) == 0
    assert [row[1] for row in cells(folder / "six.csv")[1:]] == ["6"] * 5
    assert main(["sample", run, "--n", "40", "--steps", "2", "--out", str(folder / "any.csv")]) == 0
    assert {row[1] for row in cells(folder / "any.csv")[1:]} == {"4", "6"}


@pytest.mark.parametrize("run", ["run", "by-land"])
def test_missing_cells_are_filled_and_the_others_kept_to_the_letter(trained, run):
    folder, source = trained
    words = ["restore", source, "--model", folder / run, "--nfe", 3, "--draws", 2, "--out", folder / "filled.csv"]
    assert main([*map(str, words)]) == 0
    before = cells(source)
    for k in (1, 2):
        after = cells(folder / f"filled-{k}.csv")
        assert after[0] == before[0]
        for old, new in zip(before[1:], after[1:], strict=True):
            for was, is_now in zip(old, new, strict=True):
                assert is_now == was if was not in ("", "NA") else is_now not in ("", "NA")


def test_a_table_is_not_written_over_by_one_of_its_draws(trained, tmp_path, capsys):
    folder, _ = trained
    rows = animals(4)
    rows[2][0] = ""
    words = ["--model", folder / "run", "--nfe", 1, "--out", tmp_path / "filled.csv"]
    source = tmp_path / "filled-2.csv"
    text(source, rows)
    before = source.read_bytes()
    assert main([*map(str, ["restore", source, *words, "--draws", 2])]) == 2
    assert "filled-2.csv, which is the table itself" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert main([*map(str, ["restore", source, *words])]) == 0
    assert "1 missing cell in 1 of 4 rows, 1 draw of each" in capsys.readouterr().out


def test_known_numbers_outside_those_of_training_are_said_where_cells_are_filled(trained, capsys):
    folder, _ = trained
    rows = animals(4)
    rows[1][0], rows[1][4] = "99999", ""
    source = text(folder / "far.csv", rows)
    words = ["restore", source, "--model", folder / "run", "--nfe", 1, "--out", folder / "far-filled.csv"]
    assert main([*map(str, words)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"line 3: weight = 99999.* lies outside the range of training, .* \(1 such cell\)", said)
    assert cells(folder / "far-filled.csv")[2][0] == "99999"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_end_as_they_did(trained, newline):
    folder, source = trained
    with open(source, newline="", encoding="utf-8") as file:
        content = newline.join(file.read().splitlines()) + newline
    (folder / "ends.csv").write_bytes(content.encode())
    words = ["restore", folder / "ends.csv", "--model", folder / "run", "--steps", 1, "--out", folder / "ended.csv"]
    assert main([*map(str, words)]) == 0
    made = (folder / "ended.csv").read_bytes().decode()
    assert made.count(newline) == content.count(newline)
    assert made.count("\n") == content.count("\n")
    assert ("\r" in made) == (newline == "\r\n")


def test_what_does_not_fit_restoring_is_refused(trained, capsys):
    folder, source = trained
    rows = animals(4)
    rows[2][1] = ""
    lacking = text(folder / "lacking.csv", rows)
    for words, said in (
        ([source, "--model", "mnist"], "is a table, and the model mnist is of images"),
        ([source, "--model", folder / "run", "--box", 0, 0, 1, 1], "--box is for pictures"),
        ([source, "--model", folder / "run", "--guidance", 2], "--guidance is for pictures"),
        ([source, "--model", folder / "run", "--out", folder / "a.png"], "ending in .csv"),
        ([source, "--model", folder / "run", "--out", source], "is the table itself"),
        ([lacking, "--model", folder / "by-land"], "line 4: legs is missing"),
    ):
        assert main([*map(str, ["restore", *words])]) == 2
        assert said in capsys.readouterr().err


def test_a_run_goes_on_with_its_numbers_alone(trained, capsys):
    folder, source = trained
    words = ["train", "--data", source, "--out", folder / "run", "--network", "mlp:width=8,depth=1", "--grid", 4]
    assert main([*map(str, words), "--steps", "3", "--numbers", "quantiles"]) == 2
    assert "with numbers = standard, not quantiles" in capsys.readouterr().err
    assert main([*map(str, words), "--steps", "3", "--ignore", "legs"]) == 2
    assert "a training run on other data, or on these read otherwise" in capsys.readouterr().err


def test_categories_are_filled_as_the_numbers_beside_them_say(tmp_path, run):
    # Whatever the number is, its category follows; rows that are only drawn toward it have another one in a third of cases.
    choice = np.random.default_rng(0)
    sorts = choice.integers(0, 2, 400)
    sizes = np.where(sorts == 1, 1.0, -1.0) + 0.3 * choice.standard_normal(400)
    lines = [f"{size:.3f},{['small', 'big'][sort]}" for size, sort in zip(sizes, sorts, strict=True)]
    gaps = [f"{line.partition(',')[0]}," for line in lines[300:]]
    whole, lacking = tmp_path / "whole.csv", tmp_path / "lacking.csv"
    whole.write_text("\n".join(["size,sort", *lines[:300], *gaps[:1]]) + "\n", encoding="utf-8")
    lacking.write_text("\n".join(["size,sort", *gaps]) + "\n", encoding="utf-8")
    small = ["--network", "mlp:width=64,depth=2", "--steps", 500, "--ema", 0.99, "--held-out", 0]
    assert run("train", "--data", whole, "--out", tmp_path / "run", *small)[0] == 0
    shares = []
    for further in ([], ["--sampler", "stochastic"]):
        out = tmp_path / f"filled-{len(further)}.csv"
        assert run("restore", lacking, "--model", tmp_path / "run", "--nfe", 20, "--out", out, *further)[0] == 0
        filled = [line.partition(",")[2] for line in out.read_text(encoding="utf-8").splitlines()[1:]]
        shares.append(np.mean([word == ["small", "big"][sort] for word, sort in zip(filled, sorts[300:], strict=True)]))
    assert shares[0] >= 0.97
    assert shares[1] < shares[0] - 0.05


def test_rows_drawn_in_python_hold_the_target_that_was_asked_for(trained):
    model = load(trained[0] / "by-land")
    labels = torch.arange(6) % len(model.data.classes)
    rows = model.data.values(model.sample(6, nfe=2, condition=labels))
    place = [column.name for column in model.data.columns].index(model.data.target)
    assert rows[:, place].tolist() == labels.tolist()


def test_what_does_not_fit_a_table_says_what_does(trained, capsys):
    folder, source = trained
    for words, said in (
        (["--flow", "bfn"], "bfn is a flow of values of one sort, and these rows have several: take gpfn"),
        (["--conditional"], "--conditional: of tables give --target COL in its place"),
        (["--size", 10], "--size is for folders of pictures"),
        (["--network", "unet"], "is for images, (channels, height, width), and these data have the shape"),
        (["--held-out", "0.99"], "leaves 1 of 60 examples to train on, and training takes 2"),
    ):
        assert main([*map(str, ["train", "--data", source, "--out", folder / "wrong", "--steps", 2, *words])]) == 2
        assert said in capsys.readouterr().err
        assert not (folder / "wrong").exists()


def test_bounds_refuse_what_are_no_rows(trained):
    model = load(trained[0] / "run")
    stored = model.data.rows(str(trained[1]))[0]
    assert bool((stored == GAP).any())
    assert len(model.bound(stored[:4], draws=1).values) == 4
    with pytest.raises(ArgumentError, match="infinite or NaN"):
        model.bound(torch.where(stored == GAP, math.nan, stored))
    for wrong, got in ((stored[:1], "got 1"), (stored[:0], "got 0"), ([1.0, 2.0], "got list")):
        with pytest.raises(ArgumentError, match=f"at least 2 rows, {got}"):
            model.bound(wrong)


def test_rows_are_scored_beside_real_ones(trained, capsys):
    pytest.importorskip("sklearn")
    folder, _ = trained
    out = folder / "scores.json"
    assert main(["evaluate", str(folder / "by-land"), "--steps", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "240 made rows against 24" in said
    (row,) = json.loads(out.read_text())["rows"]
    assert f"likelihood of 24 rows under {folder / 'by-land'}: at most {row['bound']['nats']:.2f} ±" in said
    assert "nats a row, numbers in their standard deviations" in said
    assert row["target"] == "legs"
    assert {"marginals", "floor_marginals", "told_apart", "nearest", "repeats"} <= set(row)
    assert main(["evaluate", str(folder / "by-land"), "--extractor", "pixels"]) == 2
    assert "is for images" in capsys.readouterr().err
    assert main(["evaluate", str(folder / "by-land"), "--class", "6"]) == 2
    assert "--class is for images" in capsys.readouterr().err


def test_rows_that_may_have_been_trained_on_are_told(trained, capsys, tmp_path):
    pytest.importorskip("sklearn")
    folder, source = trained
    copy = tmp_path / "copy.csv"
    copy.write_bytes(Path(source).read_bytes())

    def told(data):
        assert main(["evaluate", str(folder / "by-land"), "--steps", "1", "--n", "20", "--data", str(data)]) == 0
        return capsys.readouterr().out.splitlines()[0]

    assert "against 24 of" in told(source)
    assert "24 of" in told(copy)
    assert told(copy).endswith("kept from training; target legs")
    lines = copy.read_text(encoding="utf-8").splitlines()
    copy.write_text("\n".join([lines[0], *lines[:0:-1]]), encoding="utf-8")
    assert f"30 of {copy}, a half of them; the model was trained on {source}; target" in told(copy)
    whole = Path(source).read_bytes()
    try:
        Path(source).write_bytes(copy.read_bytes())
        assert "24 of" in (said := told(source))
        assert "which may have been trained on, as the file has changed since training" in said
    finally:
        Path(source).write_bytes(whole)


def test_models_of_tables_that_differ_are_evaluated_apart(trained, capsys, tmp_path):
    folder, source = trained
    words = ["--network", "mlp:width=8,depth=1", "--steps", 1, "--grid", 0, "--held-out", 0.4]
    for out, data, further in (
        ("other", text(tmp_path / "b.csv", animals(60, seed=1)), ["--target", "legs"]),
        ("fewer", source, ["--target", "legs", "--ignore", HEADER[0]]),
        ("one", text(tmp_path / "one.csv", [["a"], ["b"]] * 30, ["sort"]), []),
    ):
        assert main([*map(str, ["train", "--data", data, "--out", tmp_path / out, *words, *further])]) == 0
        capsys.readouterr()
    for models, said in (
        ((folder / "by-land", tmp_path / "other"), f"not measured alike: data: {source}"),
        ((folder / "by-land", tmp_path / "fewer"), "not measured alike: columns:"),
        ((folder / "by-land", folder / "run"), "not measured alike: target: legs and"),
        ((tmp_path / "one",), "is of one column alone"),
    ):
        assert main(["evaluate", *map(str, models)]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_training_says_how_many_rows_are_bounded_or_that_none_are(trained, capsys, tmp_path):
    source = text(tmp_path / "a.csv", animals(300))
    words = ["train", "--data", source, "--network", "mlp:width=8,depth=1", "--steps", 1, "--grid", 0]
    assert main([*map(str, [*words, "--held-out", 0.5, "--out", tmp_path / "half"])]) == 0
    assert "75 of 150 held-out rows: at most" in capsys.readouterr().out
    assert main([*map(str, [*words, "--out", tmp_path / "reverse", "--flow", "gpfn-reverse-kl"])]) == 0
    assert "the likelihood of rows has no bound of the flow gpfn-reverse-kl" in capsys.readouterr().out
    assert main([*map(str, [*words, "--out", tmp_path / "dry", "--dry-run"])]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert "categories" in first
    assert any(line.startswith("dry run") for line in rest)


def test_a_model_goes_on_with_tables_of_its_own_columns_alone(trained, capsys):
    folder, source = trained
    rows = cells(source)[1:]
    words = ["train", "--init", folder / "run", "--steps", 1, "--grid", 0, "--out"]
    assert main([*map(str, [*words, folder / "on", "--data", source])]) == 0
    for row in rows:
        row[4] = row[4].replace("ant", "bee")
    other = text(folder / "other.csv", rows)
    assert main([*map(str, [*words, folder / "other", "--data", other])]) == 2
    assert "other columns, categories or gaps" in capsys.readouterr().err


def test_options_of_tables_are_refused_for_other_data(trained, capsys):
    folder, _ = trained
    np.savetxt(folder / "real.csv", np.random.default_rng(0).standard_normal((30, 2)), delimiter=",")
    assert main(["train", "--data", str(folder / "real.csv"), "--out", str(folder / "x"), "--target", "a"]) == 2
    err = capsys.readouterr().err
    assert "--target is for tables" in err
    assert "give --kind table" in err


def test_a_flow_without_particles_of_rows_says_so_when_it_fills(tmp_path, run):
    source = text(
        tmp_path / "a.csv", [[*row[:-2], "" if k == 3 else row[-2], row[-1]] for k, row in enumerate(animals())]
    )
    words = ["--network", "mlp:width=8,depth=1", "--steps", 2, "--grid", 0]
    assert run("train", "--data", source, "--out", tmp_path / "run", "--flow", "gpfn-fisher-rao", *words)[0] == 0
    status, said, _ = run("restore", source, "--model", tmp_path / "run", "--nfe", 2, "--out", tmp_path / "filled.csv")
    assert (status, "has no particles of rows" in said) == (0, True)
