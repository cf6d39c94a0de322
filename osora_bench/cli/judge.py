"""The command `osora-bench judge`: answers from a file or of a cell, judged without a model."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from osora_bench.cli.options import recorded_run
from osora_bench.common.errors import UserError, unknown
from osora_bench.common.files import write_whole
from osora_bench.common.paths import RunPaths
from osora_bench.planning.compose import check_overrides, compose, composer, resolve
from osora_bench.planning.config import Config, EvalConfig


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    verb = argparse.ArgumentParser(
        prog="osora-bench judge",
        description="Judge answers as those of a cell are judged: what OpenCompass reads and its "
        "verdict, and beside them what this project's own reader does (docs/reading.md). One JSON "
        "line a question, and a last one with the summary of each set.",
    )
    verb.add_argument("answers", nargs="?", type=Path, metavar="ANSWERS.jsonl",
                      help='one JSON a line: {"position": 0, "output": "..."}, the position being '
                      "that of the question in the whole set, from 0")  # fmt: skip
    verb.add_argument("--suite", help="a file of conf/eval")
    verb.add_argument("--set", help="a set of the suite, or of the cell (default: all of its sets)")
    verb.add_argument("--cell", metavar="RUN_ID", help="judge the answers that a cell kept")
    verb.add_argument("--output", type=Path, help="write the lines there, and print the summary")
    verb.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as runs= or ledger=")
    return verb


def main(argv: Sequence[str]) -> int:
    """Judge, and print what came out. Returns the exit status."""
    args = _arguments(argv)
    with contextlib.redirect_stdout(sys.stderr):  # for whatever warns: stdout holds JSON alone
        lines = list(_of_cell(args) if args.cell is not None else _of_file(args))
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    if args.output is None:
        sys.stdout.write(text)
        return 0
    write_whole(args.output, text)
    for line in lines:
        if "summary" in line:
            print(json.dumps(line, ensure_ascii=False))
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    args = parser().parse_intermixed_args(argv)
    if args.answers is not None and "=" in str(args.answers) and not args.answers.exists():
        args.overrides.insert(0, str(args.answers))  # without a file, the first override is taken
        args.answers = None
    for override in args.overrides:
        if "=" not in override:
            raise UserError(f"{override}: neither an option nor KEY=VALUE")
    if args.cell is not None and (args.suite is not None or args.answers is not None):
        raise UserError("--cell RUN_ID says whose answers and of which suite; name no others")
    if args.cell is None and None in (args.suite, args.set, args.answers):
        raise UserError(
            "name --suite S --set NAME ANSWERS.jsonl, or --cell RUN_ID; `osora-bench judge --help`"
        )
    return args


def _configuration(*chosen: str) -> Config:
    overrides = ["method=none", "task=toy", "trainer=toy", "model=toy", *chosen]
    check_overrides(overrides)
    with composer():
        return resolve(compose(overrides, "judge"), "judge")


def _of_file(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is said of the answers in a file."""
    cfg = _configuration(f"eval={args.suite}", *args.overrides)
    sets = {d.name: d for d in cfg.eval.datasets}
    if args.set not in sets:
        raise UserError(unknown(f"set of suite {args.suite}", args.set, sets))
    outputs = read_answers(args.answers, sets[args.set].questions)
    yield from _told(cfg.eval, args.set, outputs, Path(cfg.runs))


def _of_cell(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is said of the answers that a cell kept, set by set."""
    cfg = _configuration(*args.overrides)
    record = recorded_run(Path(cfg.ledger), args.cell)
    answers = RunPaths(Path(cfg.runs), args.cell).evaluation / "answers"
    if not answers.is_dir():
        raise UserError(f"{answers} is not there (any more): the cell's answers cannot be judged")
    from osora_bench.evaluation import rejudging

    suite = Config.of(record["config"]).eval
    scored = rejudging.generated(suite, record["scores"])
    for name in scored if args.set is None else [args.set]:
        outputs = rejudging.kept_outputs(suite, name, answers)
        yield from _told(suite, name, outputs, Path(cfg.runs))


def read_answers(path: Path, questions: int) -> dict[int, str]:
    """The outputs of a file by position.

    Args:
        questions: how many the set has.

    Raises:
        UserError: no such file, or a line that is no answer to one of them, or a second to one.
    """
    outputs: dict[int, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            position, output = _answer(line, f"{path}, line {number}", questions)
            if position in outputs:
                raise UserError(f"{path}, line {number}: position {position} is given twice")
            outputs[position] = output
    if not outputs:
        raise UserError(f"{path}: holds no answers")
    return outputs


def _answer(line: str, where: str, questions: int) -> tuple[int, str]:
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    example = '{"position": 0, "output": "..."}'
    for key, kind in (("position", int), ("output", str)):
        if not isinstance(answer, dict) or key not in answer:
            raise UserError(f"{where}: lacks {key!r}; a line is {example}")
        if type(answer[key]) is not kind:
            raise UserError(f"{where}: {key!r} is {answer[key]!r}; a line is {example}")
    position, output = answer["position"], answer["output"]
    if not 0 <= position < questions:
        raise UserError(f"{where}: position {position} is none of the set's: 0 to {questions - 1}")
    return position, output


def _told(
    suite: EvalConfig, name: str, outputs: dict[int, str], runs: Path
) -> Iterator[dict[str, Any]]:
    """A line for each answer, and the summary."""
    from osora_bench.evaluation import rejudging

    judged = rejudging.judge_outputs(suite, name, outputs, runs)
    for i, (position, answer) in enumerate(zip(sorted(outputs), judged.answers, strict=True)):
        line = {"set": name, "position": position, "read": answer.read, "right": answer.right,
                "unread": answer.read is None}  # fmt: skip
        if answer.unjudged is not None:
            line["unjudged"] = answer.unjudged
        if judged.again is not None:
            rereading = judged.again[i]
            line |= {"corrected_read": rereading.read, "corrected_right": rereading.right}
        yield line
    k, n = sum(answer.right for answer in judged.answers), len(outputs)
    summary = {"set": name, "n": n, "k": k, "accuracy": round(100 * k / n, 2),
               "unread": sum(answer.read is None for answer in judged.answers),
               "unjudged": sum(answer.unjudged is not None for answer in judged.answers),
               "corrected": None}  # fmt: skip
    if (corrected := judged.corrected) is not None:
        accuracy = round(100 * corrected["k"] / n, 2)
        details = {key: corrected[key] for key in ("k", "differ", "unread", "rule")}
        summary["corrected"] = {"accuracy": accuracy, **details}
    yield {"summary": summary}
