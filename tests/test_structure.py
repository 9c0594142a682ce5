"""How the package hangs together: imports run downward, start-up is light, and what is promised exists."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import proxflow

SOURCE = Path(proxflow.__file__).parent

# What each part may import, by first name below the package; docs/architecture.md shows the same as a picture.
TENSORS = {"random", "_math", "errors", "examples"}
ALLOWED = {
    "errors": set(),
    "random": {"errors"},
    "_math": {"errors"},
    "config": {"errors"},
    "names": {"errors"},
    "examples": {"errors", "runtime"},
    "paths": TENSORS,
    "nn": TENSORS,
    "runtime": {"config", "errors", "proxflow"},
    "data": TENSORS | {"runtime", "names"},
    "metrics": TENSORS | {"runtime"},
    "beliefs": TENSORS,
    "divergences": TENSORS | {"beliefs", "paths"},
    "energies": TENSORS | {"beliefs", "divergences"},
    "solvers": TENSORS | {"beliefs", "divergences", "energies"},
    "proximal": TENSORS | {"beliefs", "divergences", "energies", "solvers"},
    "couplings": TENSORS | {"divergences"},
    "flows": TENSORS | {"beliefs", "couplings", "divergences", "energies", "solvers", "proximal", "paths"},
    "inverse": TENSORS,
    "page": {"errors", "runtime"},
    "likelihood": TENSORS | {"beliefs", "divergences", "paths", "flows"},
    "predictors": TENSORS | {"beliefs", "paths", "data", "divergences", "flows", "inverse"},
    "samplers": TENSORS | {"beliefs", "inverse", "names", "paths", "flows", "predictors"},
}
LIBRARY = set(ALLOWED) - {"page"}
ALLOWED["models"] = LIBRARY - {"metrics"}
ALLOWED["training"] = LIBRARY - {"likelihood", "metrics"} | {"models"}
ALLOWED["studies"] = LIBRARY | {"models", "training", "proxflow"}
ALLOWED["cli"] = ALLOWED["studies"] | {"studies", "page"}
ALLOWED["testing"] = LIBRARY
ALLOWED["plot"] = LIBRARY | {"models"}
# The package itself gives names out, and imports them when they are asked for.
ALLOWED["proxflow"] = LIBRARY | {"models", "training", "plot"}


# The one way upward, for convenience and when it is called alone: a model trains itself by Model.fit.
UPWARD = {"models/model.py": {"training"}}


def part_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    name = relative.parts[0].removesuffix(".py")
    return "proxflow" if name == "__init__" else name


def imported(path: Path) -> set[str]:
    """Parts of the package that a file imports anywhere, function bodies included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # "from proxflow import x" may mean the module x or a public name.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            head, *rest = name.split(".")
            if head == "proxflow":
                part = rest[0] if rest else "proxflow"
                found.add((proxflow._HOME.get(part) or part).partition(".")[0])
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downward(path):
    part = part_of(path)
    assert part in ALLOWED, f"the new part {part!r} needs a place in the import order"
    assert imported(path) <= ALLOWED[part] | {part} | UPWARD.get(path.relative_to(SOURCE).as_posix(), set())


def test_the_order_has_no_cycle():
    order, left = [], {part: below - {part, "proxflow"} for part, below in ALLOWED.items() if part != "proxflow"}
    while left:
        ready = [part for part, below in left.items() if below <= set(order)]
        assert ready, f"a cycle among {sorted(left)}"
        order += ready
        left = {part: below for part, below in left.items() if part not in ready}


def loaded_by(code: str) -> set[str]:
    """Top-level modules, and parts of the package, that are loaded after running some code in a fresh process."""
    script = code + "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_importing_the_package_is_light():
    loaded = loaded_by("import proxflow")
    assert not loaded & {"torch", "numpy", "matplotlib", "PIL", "tyro", "rich", "safetensors"}
    assert {name for name in loaded if name.startswith("proxflow")} == {"proxflow"}


def test_using_the_library_brings_no_plotting_command_line_or_data():
    loaded = loaded_by("import proxflow\nproxflow.build, proxflow.load, proxflow.fit, proxflow.sample")
    assert {"torch", "proxflow.training.fit"} <= loaded
    assert not loaded & {"matplotlib", "PIL", "tyro", "rich", "scipy"}
    assert not loaded & {
        "proxflow.cli",
        "proxflow.cli.run",
        "proxflow.studies",
        "proxflow.metrics",
    }


def test_the_library_needs_neither_plots_nor_what_a_command_line_is_made_of():
    """Import, mathematics, training and sampling, with a bar asked for, where none of the three is installed."""
    code = """
import sys
for name in ("matplotlib", "tyro", "rich"):
    sys.modules[name] = None
sys.stderr.isatty = lambda: True
import torch, proxflow
from proxflow import GPFN, KL, DiagonalGaussian, NewtonSolver, Proximal
p, q = (DiagonalGaussian(torch.full((2, 3), m, dtype=torch.float64), s) for m, s in ((0.0, 1.0), (1.0, 0.5)))
found, exact = Proximal(KL(), NewtonSolver())(p, q, 0.5), Proximal(KL())(p, q, 0.5)
torch.testing.assert_close(found.mean, exact.mean)
model = proxflow.build((1, 8, 8), network="unet:channels=8,multipliers=1")
trained = model.fit(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), steps=2, batch_size=4)
assert trained.sample(2, nfe=2).shape == (2, 1, 8, 8)
"""
    assert not loaded_by(code) & {"proxflow.cli", "proxflow.studies"}


def test_every_public_name_resolves():
    assert {"GPFN", "BFN", "Wasserstein2", "sample", "fit", "load", "__version__"} <= set(proxflow.__all__)
    for name in proxflow.__all__:
        assert getattr(proxflow, name) is not None
    assert dir(proxflow) == proxflow.__all__
    with pytest.raises(AttributeError, match="nonesuch"):
        proxflow.nonesuch  # noqa: B018


def test_the_type_checker_sees_the_same_public_names():
    tree = ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8"))
    seen = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {"__version__"} == set(proxflow.__all__)


def test_nothing_catches_every_error():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                assert caught not in ("", "Exception"), f"{path}:{node.lineno}: catches everything"
