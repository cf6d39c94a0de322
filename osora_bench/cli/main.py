"""The command `osora-bench`: what each verb is for, and how a mistake is told."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from osora_bench.common.errors import UserError, tell, unknown
from osora_bench.common.exits import exit_status_of
from osora_bench.common.interruption import Interrupted
from osora_bench.common.process import name_user, open_what_is_closed

USAGE = """\
usage: osora-bench VERB [KEY=VALUE ...]

  plan    experiment=NAME   the cells of an experiment, their run ids and states (--json);
                            experiment=A,B: of several, what they share once
  run     experiment=NAME   run the cells that have no record yet, in this process
                            (workers=N or auto: in N processes, which go on without this;
                            hydra/launcher=slurm [hydra.launcher.partition=P ...]: as SLURM jobs,
                            wait=MINUTES: left to themselves when nothing moves for so long, by
                            default a day;
                            retries=N: how often a cell is started again whose process was killed,
                            by default once; allow_changed=true: on other code than at the start)
  tables  experiment=NAME   the experiment's tables from its records
                            (out=FOLDER: write them there; params=true: with parameter counts;
                            compare=paper: the paper's numbers and the difference below ours;
                            others=true: limited sets and other seeds as well, marked)
  figures experiment=NAME   the experiment's figures as PNG, SVG and PDF (out=FOLDER)
  results                   all that results/ledger gives: results/tables, results/figures and the
                            tables inside README.md and RESULTS.md
  params  [model=A,B | config=FILE] [method=C,D] [rank=8,16] [modules=M,N] [--csv]
                            trainable parameters, adapter and frozen bytes, from the architecture
                            alone: the experiments' grid, or any hub-style config.json with each
                            method's own rank; method=all: of every file of conf/method;
                            modules: which are adapted, e.g. c_attn or all-linear
  methods                   docs/methods.md: every method of conf/method, what it trains, from which
                            paper, whether it merges; and PEFT's classes that are left out
  data    list|verify|fetch [SET ...]
                            benchmark sets: source, licence and state; their checksums and rows;
                            downloading what is missing (--replace: also what is wrong)
  audit                     where the paper's printed averages differ from its own cells
  cell    KEY=VALUE ...     one cell, or a Hydra multirun with -m (same as python -m osora_bench)
  evaluate --model M [--adapter FOLDER] --suite S
                            score a model or an adapter (osora-bench evaluate --help)
  judge   --suite S --set NAME ANSWERS.jsonl | --cell RUN_ID
                            judge answers from a file, or those that a cell kept, without a model
                            (osora-bench judge --help)
  export  ...               an OSoRA adapter as LoRA, or merged (osora-bench export --help)
  svd     ...               the store of decompositions: build, list, clean (osora-bench svd --help)

KEY=VALUE sets any configuration key for all cells, e.g. trainer.max_steps=1 ledger=/tmp/ledger;
scale=smoke runs or shows the same rows and columns on tiny random models and made-up data.
Experiments are the files of experiments/; models, methods, tasks and suites those of conf/.
"""


VERBS = {
    "plan": "osora_bench.cli.plan:plan_verb",
    "run": "osora_bench.cli.run:run_verb",
    "tables": "osora_bench.cli.report:tables_verb",
    "figures": "osora_bench.cli.report:figures_verb",
    "results": "osora_bench.cli.report:results_verb",
    "audit": "osora_bench.cli.report:audit_verb",
    "params": "osora_bench.cli.params:params_verb",
    "methods": "osora_bench.cli.methods:methods_verb",
    "data": "osora_bench.cli.data:data_verb",
    "cell": "osora_bench.cli.run:cell_verb",
    "evaluate": "osora_bench.cli.evaluate:evaluate_verb",
    "judge": "osora_bench.cli.judge:main",
    "export": "osora_bench.osora.commands:export_main",  # these two need nothing of the harness
    "svd": "osora_bench.osora.commands:svd_main",
}
"""What each verb is, imported when it is called: every file imports what its own verbs need."""

OWN_HELP = ("cell", "evaluate", "judge", "export", "svd")


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch a verb. Exit status: 0 all well, 1 a cell failed, 2 a mistake in the call."""
    open_what_is_closed()
    name_user()
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb, rest = (arguments or ["help"])[0], arguments[1:]
    help_asked = {"-h", "--help"} & set(rest) and verb not in OWN_HELP
    if help_asked or verb in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    try:
        if verb not in VERBS:
            raise UserError(unknown("verb", verb, VERBS))
        status = _imported(VERBS[verb])(rest)
        sys.stdout.flush()
        return status
    except Interrupted as interrupted:
        print(f"{interrupted}: what was done is kept, the next start goes on from it")
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


def _imported(name: str) -> Callable[[Sequence[str]], int]:
    module, _, function = name.partition(":")
    verb: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    return verb


if __name__ == "__main__":
    sys.exit(main())
