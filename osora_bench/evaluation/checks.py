"""What can be refused of a suite before a model is loaded."""

from importlib.util import find_spec
from pathlib import Path

from osora_bench.benchdata.sets import absent, data_folder, gated, refuse_committable
from osora_bench.common.errors import UserError
from osora_bench.planning.config import EvalConfig


def check_installed() -> None:
    """Raise UserError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise UserError(
            "eval.backend=vllm: vLLM is not installed here (`pip install vllm`, on a machine with "
            "a GPU); eval.backend=transformers runs everywhere"
        )


def check_suite(suite: EvalConfig, folder: Path, how: str) -> None:
    """Raise UserError if a suite's backend cannot run here or files of it are missing, or if its
    answers, with the questions, may not lie in `folder`; `how` says by what another is named."""
    if suite.backend == "vllm":
        check_installed()
    check_files(suite)
    if any(gated(file) for dataset in suite.chosen for file in dataset.files):
        refuse_committable(folder / "answers", how)


def check_files(suite: EvalConfig) -> None:
    """Raise UserError with every file of a suite that is missing."""
    missing = {
        f"{dataset.name}: {line}": dataset.name
        for dataset in suite.chosen
        for file in dataset.files
        if (line := absent(file)) is not None
    }
    if missing:
        lines = [*missing, data_folder()]
        names = sorted(set(missing.values()))
        if len(names) < len(suite.chosen):
            lines.append(f"eval.without=[{','.join(names)}] scores the others")
        raise UserError("\n".join(lines))
