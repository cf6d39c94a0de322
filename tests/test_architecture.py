"""The house: which room may import which, and who holds the doors to the outside. Read from the
imports with `ast`, wherever they stand, so that nothing has to be imported to be judged."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "osora_bench"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

FLOORS = {
    "common": 1,
    "osora": 1,
    "records": 2,
    "benchdata": 2,
    "planning": 3,
    "models": 4,
    "training": 5,
    "evaluation": 5,
    "reporting": 5,
    "pipeline": 6,
    "sweep": 7,
    "cli": 8,
}
"""A room imports itself and the rooms below it. Beside them are data and their makers (BESIDE)."""
BESIDE = {"toy", "arithmetic"}

DOORS = {
    "opencompass": ("evaluation", "toy", "arithmetic"),
    "mmengine": ("evaluation", "toy"),
    "pandas": ("reporting",),
    "vl_convert": ("reporting",),
    "jinja2": ("reporting",),
    "scipy": ("reporting",),
    "wandb": ("pipeline.tracker_process",),
    "tensorboard": ("pipeline.on_tensorboard",),
    "mlflow": ("pipeline.on_mlflow",),
    "submitit": ("sweep.slurm.submit_process",),
    "vllm": ("evaluation.vllm_model",),
}
"""What is imported in these rooms or modules only."""

LIGHT = ("planning", "cli", "records")
"""Rooms whose modules load no torch when they are imported."""


def modules() -> dict[str, Path]:
    """Every module by its name below the package; a package by its own."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imports(module: str) -> tuple[tuple[str, bool], ...]:
    """What a module imports, wherever it does, and whether that is for the type checker only."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return tuple(_imported(tree, module, typing=False))


def _imported(node: ast.AST, module: str, *, typing: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        typing = True
    if isinstance(node, ast.Import):
        yield from ((name.name, typing) for name in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = MODULES[module].relative_to(ROOT.parent).parts[: -node.level] if node.level else ()
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from ((f"{base}.{name.name}", typing) for name in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imported(child, module, typing=typing)


def inside(module: str, *, typing: bool = True) -> set[str]:
    """The modules of this package that a module imports; `a.b.c` is `a.b` where c is no module."""
    found = set()
    for name, for_types in imports(module):
        if for_types and not typing:
            continue
        inner = name.removeprefix(f"{PACKAGE}.")
        if inner != name:
            found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found - {module, ""}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_the_rooms_are_those_of_the_plan():
    assert {room(m) for m in MODULES} - {"", "__main__"} - BESIDE == set(FLOORS)


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in FLOORS])
def test_a_room_imports_only_rooms_below_it(module):
    own = FLOORS[room(module)]
    above = {
        m
        for m in inside(module)
        if room(m) in FLOORS and room(m) != room(module) and FLOORS[room(m)] >= own
    }
    assert not above, f"{module} (floor {own}) imports {above}"


def test_no_files_import_each_other_in_a_circle():
    """Not even late, inside functions. What only the type checker reads is left out."""
    graph = {m: inside(m, typing=False) & MODULES.keys() for m in MODULES}
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in graph[module]:
                walk(other, (*way, module))
            done.add(module)

    for module in graph:
        if MODULES[module].name != "__init__.py":
            walk(module, ())


@pytest.mark.parametrize("library", DOORS)
def test_each_door_has_one_keeper(library):
    users = {m for m in MODULES for name, _ in imports(m) if name.partition(".")[0] == library}
    strangers = {
        m for m in users if not any(m == k or m.startswith(f"{k}.") for k in DOORS[library])
    }
    assert users or library == "submitit"  # which comes through Hydra's launcher
    assert not strangers, f"{library} is imported by {strangers}, not only by {DOORS[library]}"


def test_planning_the_command_line_and_records_load_no_torch():
    """Plans and tables start at once. In one process: what one module loads, all would."""
    light = [m for m in MODULES if room(m) in LIGHT]
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module('{PACKAGE}.{m}')\n"
        f"assert 'torch' not in sys.modules, '{m} loads torch'\n"
        for m in light
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "module",
    [m for m, p in MODULES.items() if p.name == "__init__.py" and room(m) in FLOORS.keys() | BESIDE
     and m != "osora"],
)  # fmt: skip
def test_a_package_is_a_docstring(module):
    """A re-export would load what nobody asked for. osora/ is a library of its own: it exports."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1, f"{module}/__init__.py holds more than its docstring"


def test_what_is_started_as_a_process_is_called_so_and_nothing_else_is():
    """By `python -m`, whose module a string names."""
    strings = {
        node.value
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    processes = {m for m in MODULES if m.endswith("_process")}
    # a Hydra entry by its path, which the one that submits hands over
    started = {m for m in MODULES if f"{PACKAGE}.{m}" in strings} | {"sweep.slurm.job_process"}
    assert started - {"models.counting"} == processes  # that one is imported by its name


def test_linear_algebra_is_osoras():
    users = {
        m
        for m, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("linalg", "svd", "svd_lowrank")
    }
    assert {room(m) for m in users} == {"osora"}
