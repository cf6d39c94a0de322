"""Change the files that make numbers, one small fault at a time, and count what no test notices.

    make mutants                                  # a sample of 60 of each file
    make mutants SAMPLE=20 FILES="osora/svd.py records/record.py"
    make mutants REPORT=1                         # what the runs so far have found, no run

docs/mutants.md says which mutants, how they are run and what came out. Results are kept below
runs/mutants, each under its changed code, so that a start goes on where the last one stopped.
"""

import argparse
import ast
import functools
import gc
import hashlib
import importlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "runs" / "mutants"
TREE = PLACE / "tree"
R = "evaluation/reading"
JUDGES = ("evaluation/test_judging.py", f"{R}/test_bounded.py",
          "evaluation/test_answering.py", "cli/test_judge.py")  # fmt: skip
TABLES = ("reporting/test_numbers.py", "reporting/test_rows.py", "reporting/test_against.py",
          "reporting/test_tabulate.py")  # fmt: skip
TESTS: dict[str, tuple[str, ...]] = {
    "osora/layer.py": ("osora/test_equations.py", "osora/test_bad_input.py",
                       "osora/test_checkpoint.py", "osora/test_export.py",
                       "osora/test_peft_features.py"),
    "osora/svd.py": ("osora/test_svd.py", "osora/test_store.py"),
    "osora/checkpoint.py": ("osora/test_checkpoint.py", "osora/test_bad_input.py"),
    "training/data.py": ("training/test_data.py", "training/test_template.py"),
    "training/collator.py": ("training/test_collator.py", "training/test_train.py",
                             "training/test_micro_batches.py"),
    "evaluation/decoder.py": ("evaluation/test_decoder.py", "evaluation/test_numbers_only.py"),
    "evaluation/batched_model.py": ("evaluation/test_decoder.py", "evaluation/test_scorer.py"),
    "evaluation/scorer.py": ("evaluation/test_scorer.py",),
    "evaluation/shared_prefix.py": ("evaluation/test_decoder.py", "evaluation/test_scorer.py"),
    "evaluation/judging.py": JUDGES,
    "evaluation/scores.py": ("evaluation/test_scores.py",),
    f"{R}/corrections.py": (f"{R}/test_corrections.py", f"{R}/test_reading.py"),
    f"{R}/choices.py": (f"{R}/test_choices.py", f"{R}/test_reading.py"),
    f"{R}/numbers.py": (f"{R}/test_numbers.py", f"{R}/test_reading.py"),
    f"{R}/formulas.py": (f"{R}/test_formulas.py", f"{R}/test_reading.py"),
    f"{R}/turns.py": (f"{R}/test_turns.py", f"{R}/test_choices.py"),
    "records/record.py": ("records/test_record.py", "reporting/test_against.py"),
    "planning/identity.py": ("planning/test_identity.py",),
    "reporting/numbers.py": TABLES,
    "reporting/layouts/against.py": TABLES,
    "reporting/rows.py": TABLES,
}  # fmt: skip
"""The files of osora_bench that make numbers, and the tests that mirror each."""
MARKS = "not slow and not sweep and not long and not real_data"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "pandas", "hydra",
             "pyarrow", "opencompass.openicl", "opencompass.datasets", "mmengine",
             "math_verify", "vl_convert", "absl.logging")  # fmt: skip
UNCHANGED_CALLS = frozenset({"warn", "UserError", "cast", "TypeVar", "len", "isinstance"})
"""Wording, types, and what can only raise when it is changed."""
UNCHANGED_ARGUMENTS = frozenset({"encoding", "strict", "stacklevel"})
"""`strict` guards against what cannot happen; UTF-8 is this process's encoding anyway."""


@dataclass(frozen=True)
class Mutant:
    """A file of the package with one node changed."""

    file: str
    line: int
    before: str
    after: str
    key: str
    """A hash of the function (or the module's statement) that it is in, and of the change."""
    make: Callable[[], str]
    """The file's text with the change."""


@dataclass
class Result:
    """What became of a mutant; `killer`: the test that failed, or the time that was over."""

    file: str
    line: int
    before: str
    after: str
    killer: str | None
    seconds: float
    tests: str
    """A hash of the tests that it survived."""


def mutants(file: str) -> list[Mutant]:
    """All mutants of a file."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.mutators import mutation_operators

    code = (ROOT / "osora_bench" / file).read_text(encoding="utf-8")
    wrapper = MetadataWrapper(cst.parse_module(code))
    module, places = wrapper.module, wrapper.resolve(PositionProvider)
    found: list[Mutant] = []
    met: Counter[str] = Counter()

    def add(scope: str, node: Any, changed: Any) -> None:
        before, after = (" ".join(module.code_for_node(n).split()) for n in (node, changed))
        text = "\n".join((file, scope, before, after))
        met[text] += 1
        key = hashlib.sha256(f"{text}\n{met[text]}".encode()).hexdigest()[:16]
        source = functools.partial(_replaced, module, node, changed)
        found.append(Mutant(file, places[node].start.line, before, after, key, source))

    def visit(node: Any, scope: str) -> None:
        if _unchanged(node, cst):
            return
        for kind, operator in mutation_operators:
            for changed in operator(node) if isinstance(node, kind) else ():
                if not (isinstance(node, cst.Call) and _of_no_account(node, changed)):
                    add(scope, node, changed)
        for child in node.children:
            own = isinstance(child, cst.FunctionDef) or isinstance(node, cst.Module)
            visit(child, module.code_for_node(child) if own else scope)

    visit(module, "")
    return found


def _replaced(module: Any, node: Any, changed: Any) -> str:
    source: str = module.deep_replace(node, changed).code
    return source


def _is_one(mutant: Mutant) -> bool:
    """Whether a mutant is another program than the file, and one at all."""
    original = (ROOT / "osora_bench" / mutant.file).read_text(encoding="utf-8")
    try:
        return ast.dump(ast.parse(mutant.make())) != ast.dump(ast.parse(original))
    except SyntaxError:
        return False


def _unchanged(node: Any, cst: Any) -> bool:
    """What is left out by rule: types, imports, wording, docstrings, how an object shows itself."""
    match node:
        case (
            cst.Annotation()
            | cst.Import()
            | cst.ImportFrom()
            | cst.Raise()
            | cst.Decorator()
            | cst.FunctionDef(name=cst.Name(value="__repr__"))
            | cst.Expr(value=cst.SimpleString() | cst.ConcatenatedString())
            | cst.Assign(value=cst.Subscript(value=cst.Name(value="tuple")))  # the name of a type
        ):
            return True
        case cst.Arg(keyword=cst.Name(value=name)):
            return name in UNCHANGED_ARGUMENTS
        case cst.SimpleString():  # a sentence; an expression is a raw string
            return "r" not in node.prefix and node.value.count(" ") > 1
        case cst.Call(func=cst.Name(value=name) | cst.Attribute(attr=cst.Name(value=name))):
            return name in UNCHANGED_CALLS
    return False


def _of_no_account(call: Any, changed: Any) -> bool:
    """Whether what has changed of a call are arguments that are left out by rule."""
    kept = {id(argument) for argument in changed.args}
    gone = [argument for argument in call.args if id(argument) not in kept]
    names = {argument.keyword.value if argument.keyword else None for argument in gone}
    return bool(names) and names <= UNCHANGED_ARGUMENTS


def sample(file: str, size: int, seed: int) -> list[Mutant]:
    """`size` of a file's mutants: those of the smallest hashes, so that a larger sample holds a
    smaller one, and a change elsewhere in the file leaves most of it as it was."""

    def rank(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed} {mutant.key}".encode()).hexdigest()

    return list(itertools.islice(filter(_is_one, sorted(mutants(file), key=rank)), size))


class Order:
    """A plugin of pytest: which tests run first, and which of them failed."""

    def __init__(self, kills: Counter[str], seconds: dict[str, float]) -> None:
        self.kills, self.seconds = kills, seconds
        self.failed: str | None = None
        self.took: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        def worth(item: pytest.Item) -> float:
            return (self.kills[item.nodeid] + 0.2) / (self.seconds.get(item.nodeid, 0.1) + 0.02)

        items.sort(key=worth, reverse=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.took[report.nodeid] += report.duration
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} (import)"


@dataclass
class Outcome:
    """Of one run of tests: the first that failed, and what each took."""

    killer: str | None
    seconds: float
    took: dict[str, float]


def run_tests(tests: Sequence[str], order: Order, processor: float, clock: float) -> Outcome:
    """The tests of the copy in a forked process, with bounds in seconds of its processor time and
    by the clock."""
    shutil.rmtree(PLACE / "tmp", ignore_errors=True)
    answer = PLACE / "answer.json"
    answer.unlink(missing_ok=True)
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(tests, order, processor, answer)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - begin > clock:
            os.killpg(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.02)
    seconds = time.monotonic() - begin
    if not answer.exists():  # the time was over, or the mutant has ended its process
        return Outcome("time, or the process ended", seconds, {})
    found = json.loads(answer.read_text())
    return Outcome(found["failed"], seconds, found["took"])


def _child(tests: Sequence[str], order: Order, processor: float, answer: Path) -> None:
    code = 1
    try:
        os.setsid()
        limit = int(processor) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        log = os.open(PLACE / "last.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(TREE)
        sys.path.insert(0, str(TREE))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", MARKS]
        ended = pytest.main(
            [*options, f"--basetemp={PLACE}/tmp", f"--rootdir={TREE}", *tests], plugins=[order]
        )
        used = Path(sys.modules["osora_bench"].__file__ or "")
        failed = order.failed or (None if ended == 0 else f"pytest: {ended!r}")
        if not used.is_relative_to(TREE):
            failed = "NOT THE COPY"
        partial = answer.with_suffix(".part")
        partial.write_text(json.dumps({"failed": failed, "took": order.took}))
        partial.rename(answer)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def copy_of_checkout() -> None:
    """The files that git knows or would take, in a folder of its own, without old byte code."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode().split("\0")  # fmt: skip
    shutil.rmtree(TREE, ignore_errors=True)
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)


def tests_of(file: str) -> list[str]:
    return [f"tests/{t}" for t in TESTS[file] if (TREE / "tests" / t).exists()]


def _hash_of_tests(file: str) -> str:
    parts = [*map(Path, tests_of(file)), Path("tests/conftest.py")]
    return hashlib.sha256(b"".join((TREE / p).read_bytes() for p in parts)).hexdigest()[:16]


def results_of(file: str) -> dict[str, Result]:
    place = PLACE / "results" / f"{file.replace('/', '.')}.json"
    if not place.exists():
        return {}
    return {key: Result(**value) for key, value in json.loads(place.read_text()).items()}


def _keep(file: str, results: dict[str, Result]) -> None:
    place = PLACE / "results" / f"{file.replace('/', '.')}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".part")
    partial.write_text(json.dumps({k: asdict(r) for k, r in results.items()}, indent=1))
    partial.rename(place)


def try_file(file: str, chosen: Sequence[Mutant]) -> None:
    """Run the tests of a file against its mutants that have no result yet."""
    results, tests, mark = results_of(file), tests_of(file), _hash_of_tests(file)
    kills = Counter(r.killer for r in results.values() if r.killer is not None)

    def done(mutant: Mutant) -> bool:
        result = results.get(mutant.key)
        return result is not None and (result.killer is not None or result.tests == mark)

    waiting = [mutant for mutant in chosen if not done(mutant)]
    if not waiting:
        return
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    plain = run_tests(tests, Order(kills, {}), 600, 1200)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if plain.killer is not None:
        sys.exit(f"mutants: the tests of {file} fail without a mutant: {plain.killer}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{file}: {len(waiting)} mutants; tests take {used:.1f} s of processor time", flush=True)
    place = TREE / "osora_bench" / file
    original = place.read_text(encoding="utf-8")
    try:
        for mutant in waiting:
            place.write_text(mutant.make(), encoding="utf-8")
            order = Order(kills, plain.took)
            outcome = run_tests(tests, order, 5 * used + 5, 20 * used + 60)
            kills.update([outcome.killer] if outcome.killer else [])
            results[mutant.key] = Result(
                file, mutant.line, mutant.before, mutant.after, outcome.killer,
                round(outcome.seconds, 2), mark,
            )  # fmt: skip
            _keep(file, results)
            if outcome.killer is None:
                print(f"  lives: {file}:{mutant.line}  {mutant.before}  ->  {mutant.after}")
    finally:
        place.write_text(original, encoding="utf-8")


def report(samples: dict[str, list[Mutant]]) -> Iterator[str]:
    """The table of docs/mutants.md, and the survivors."""
    yield "| file | mutants | tried | killed | % |\n|:--|--:|--:|--:|--:|"
    alive: list[str] = []
    every, dead = 0, 0
    for file, chosen in samples.items():
        results = results_of(file)
        tried = [results[m.key] for m in chosen if m.key in results]
        killed = sum(result.killer is not None for result in tried)
        every, dead = every + len(tried), dead + killed
        share = f"{100 * killed / len(tried):.0f}" if tried else ""
        yield f"| {file} | {len(mutants(file))} | {len(tried)} | {killed} | {share} |"
        alive += [
            f"- {file}:{m.line} `{m.before}` -> `{m.after}`"
            for m in sorted(chosen, key=lambda m: m.line)
            if m.key in results and results[m.key].killer is None
        ]
    yield f"| all | | {every} | {dead} | {100 * dead / max(every, 1):.0f} |\n"
    yield from alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help=f"of osora_bench/: {', '.join(TESTS)}")
    parser.add_argument("--sample", type=int, default=60, help="mutants of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="run nothing")
    args = parser.parse_args()
    unknown = [file for file in args.files if file not in TESTS]
    if unknown:
        parser.error(f"no tests are named for {', '.join(unknown)}. Valid: {', '.join(TESTS)}")
    sys.path.append(str(PLACE / "tool"))  # behind everything: it has a pytest of its own, or may
    samples = {f: sample(f, args.sample, args.seed) for f in args.files or TESTS}
    if not args.report:
        os.environ.pop("OSORA_DATA", None)  # the same everywhere
        sys.dont_write_bytecode = True
        copy_of_checkout()
        for library in LIBRARIES:
            importlib.import_module(library)
        gc.freeze()
        for file, chosen in samples.items():
            try_file(file, chosen)
    for line in report(samples):
        print(line)


if __name__ == "__main__":
    main()
