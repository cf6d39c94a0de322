"""The command `osora-bench`: what each verb is for, and how a mistake is told."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from osora_bench.common.errors import UserError, tell, unknown
from osora_bench.common.exits import exit_status_of
from osora_bench.common.interruption import Interrupted
from osora_bench.common.process import name_user, open_what_is_closed

USAGE = """\
usage: osora-bench VERB [KEY=VALUE ...]

  plan      the cells of an experiment, their run ids and states
  run       run the cells of an experiment that have no record yet
  compare   methods beside each other, each at tuned rates on several seeds, with tests and costs
  tables    an experiment's tables from its records
  report    tables, charts and every record behind a number, as one HTML file
  answers   every question of one or two runs: prompt, output, what was read, right or wrong
  card      a model card for the hub beside a run's adapter
  figures   an experiment's figures as PNG, SVG and PDF
  scores    every answer of an experiment's records as one CSV file, a row a question
  results   all that results/ledger gives, the tables inside README.md and RESULTS.md too
  params    trainable parameters, adapter and frozen bytes, from the architecture alone
  methods   docs/methods.md: every method, what it trains, whether it merges; what is left out
  data      benchmark sets: source, licence, state; their checksums; downloading what is missing
  leakage   which questions of an experiment stand in the rows that it trains on
  audit     where the paper's printed averages differ from its own cells
  cell      one cell, or a Hydra multirun with -m (same as python -m osora_bench)
  evaluate  score a model, or an adapter on it, from a folder
  judge     judge answers from a file, or those that a cell kept, without a model
  export    an OSoRA adapter as LoRA, or merged into its base model
  svd       the store of decompositions: build, list, clean

  osora-bench VERB --help   the options of a verb
  osora-bench --version     the version (-V)

KEY=VALUE sets any configuration key for all cells, e.g. trainer.max_steps=1 ledger=/tmp/ledger.
Experiments are the files of experiments/; models, methods, tasks and suites those of conf/.
"""


VERBS = {
    "plan": "osora_bench.cli.plan:plan_verb",
    "run": "osora_bench.cli.run:run_verb",
    "compare": "osora_bench.cli.compare:compare_verb",
    "tables": "osora_bench.cli.report:tables_verb",
    "report": "osora_bench.cli.page:report_verb",
    "answers": "osora_bench.cli.answers:answers_verb",
    "card": "osora_bench.cli.card:card_verb",
    "figures": "osora_bench.cli.report:figures_verb",
    "scores": "osora_bench.cli.report:scores_verb",
    "results": "osora_bench.cli.report:results_verb",
    "audit": "osora_bench.cli.report:audit_verb",
    "params": "osora_bench.cli.params:params_verb",
    "methods": "osora_bench.cli.methods:methods_verb",
    "data": "osora_bench.cli.data:data_verb",
    "leakage": "osora_bench.cli.leakage:leakage_verb",
    "cell": "osora_bench.cli.run:cell_verb",
    "evaluate": "osora_bench.cli.evaluate:evaluate_verb",
    "judge": "osora_bench.cli.judge:main",
    "export": "osora_bench.osora.commands:export_main",  # these two need nothing of the harness
    "svd": "osora_bench.osora.commands:svd_main",
}
"""What each verb is, imported when it is called: every file imports what its own verbs need. Its
file has its page of help too: `HELP`, by verb, or argparse's."""

PARSED = ("evaluate", "judge", "export", "svd")
"""Verbs whose help is argparse's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch a verb. Exit status: 0 all well, 1 a cell failed, 2 a mistake in the call."""
    open_what_is_closed()
    name_user()
    if argv is None:
        _find_own_modules()
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb, rest = (arguments or ["help"])[0], arguments[1:]
    try:
        if (page := _page(verb, rest)) is not None:
            print(page, end="")
            status = 0
        elif verb in VERBS:
            status = _imported(verb)(rest)
        else:
            raise UserError(unknown("verb", verb, VERBS))
        sys.stdout.flush()
        return status
    except Interrupted as interrupted:
        print(interrupted.told)
        return exit_status_of(interrupted.number)
    except KeyboardInterrupt:
        return exit_status_of(signal.SIGINT)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        if verb == "run":
            tell("nobody reads what it says, so it ended")
        return exit_status_of(signal.SIGPIPE)
    except (UserError, OSError) as error:  # a folder to write to, most of all; its name is told
        tell(error)
        return 2


def _page(verb: str, rest: Sequence[str]) -> str | None:
    """The page that is asked for: what there is, the version, or a verb's own, which stands beside
    its function; None where a verb is to be run."""
    if verb in ("-h", "--help", "help"):
        return USAGE
    if verb in ("-V", "--version"):
        return f"osora-bench {version('osora-bench')}\n"
    if verb not in VERBS or verb in PARSED or not {"-h", "--help"} & set(rest):
        return None
    page: str = _module(verb).HELP[verb]
    return page


def _imported(name: str) -> Callable[[Sequence[str]], int]:
    function: Callable[[Sequence[str]], int] = getattr(_module(name), VERBS[name].split(":")[1])
    return function


def _module(verb: str) -> ModuleType:
    """The file of a verb, with all that it needs.

    Raises:
        UserError: that is not installed.
    """
    try:
        return import_module(VERBS[verb].partition(":")[0])
    except ModuleNotFoundError as error:
        if str(error.name).startswith("osora_bench"):
            raise
        raise UserError(
            f"`osora-bench {verb}` is of the harness, which needs {error.name}; install it with "
            'pip install "osora-bench[bench]"'
        ) from error


def _find_own_modules() -> None:
    """Where the command was started, modules of the user's can be imported, such as a method's, as
    with `python -m osora_bench`; last, so that no file there takes a library's place."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


if __name__ == "__main__":
    sys.exit(main())
