"""osora-bench answers: every question of one run, or of two beside each other, as a page."""

from collections.abc import Sequence
from pathlib import Path

from osora_bench.benchdata.sets import refuse_committable
from osora_bench.cli.options import own_options, places, recorded_run
from osora_bench.common.errors import UserError
from osora_bench.common.files import write_whole
from osora_bench.common.paths import RunPaths
from osora_bench.reporting.html.answers import Side, answers_page, is_gated

OPTIONS = ("ledger", "runs", "out")
HELP = {
    "answers": """\
usage: osora-bench answers A [B] [KEY=VALUE ...]

One HTML file with every question that a run was asked: prompt, output, what was read of it, right
or wrong; of two runs beside each other. Filtered by verdict, by who was right, by a text.

  A, B                 run ids (osora-bench plan)
  ledger=FOLDER        where their records are; by default runs/ledger
  runs=FOLDER          where their answers are; by default runs
  out=FILE             write it there; by default below runs/answers
""",
}


def answers_verb(arguments: Sequence[str]) -> int:
    """Write the page."""
    options, run_ids = own_options(arguments, OPTIONS)
    if not 1 <= len(run_ids) <= 2 or any("=" in r or r.startswith("-") for r in run_ids):
        raise UserError("name one run or two: osora-bench answers A [B]; `answers --help`")
    ledger, runs = places(options)
    sides = [
        Side(recorded_run(ledger, run_id), RunPaths(runs, run_id).evaluation / "answers")
        for run_id in run_ids
    ]
    place = Path(options.get("out", runs / "answers" / f"{'-'.join(run_ids)}.html"))
    if is_gated(sides):
        refuse_committable(place.absolute(), "with out=FILE")
    text = answers_page(sides)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_whole(place, text)
    print(f"{len(text.encode()) / 1e6:.1f} MB written to {place}")
    return 0
