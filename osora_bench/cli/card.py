"""osora-bench card: a model card for the hub, beside a run's adapter."""

from collections.abc import Sequence
from pathlib import Path

from osora_bench.cli.options import own_options, places, recorded_run
from osora_bench.common.errors import UserError
from osora_bench.common.files import write_whole
from osora_bench.common.paths import RunPaths

OPTIONS = ("ledger", "runs")
TEMPLATES = ("Model Card for Model ID",)
"""In what PEFT writes beside every adapter for people to fill in."""
HELP = {
    "card": """\
usage: osora-bench card RUN_ID [ledger=FOLDER] [runs=FOLDER]

Write README.md beside a run's adapter: the hub's metadata (base model, licence, results) and a text
that says how to load it. A card that somebody wrote is left alone.

  ledger=FOLDER        where the record is; by default runs/ledger
  runs=FOLDER          where the adapter is; by default runs
""",
}


def card_verb(arguments: Sequence[str]) -> int:
    """Write the card."""
    options, run_ids = own_options(arguments, OPTIONS)
    if len(run_ids) != 1 or "=" in run_ids[0] or run_ids[0].startswith("-"):
        raise UserError("name one run: osora-bench card RUN_ID; `osora-bench card --help`")
    ledger, runs = places(options)
    record = recorded_run(ledger, run_ids[0])
    if record["training"] is None:
        raise UserError(f"{run_ids[0]}: trained nothing (method none), so there is no adapter")
    if "diverged" in record["training"]:
        raise UserError(f"{run_ids[0]}: diverged, so there is no adapter")
    place = adapter_of(runs, run_ids[0]) / "README.md"
    from osora_bench.reporting import model_card  # huggingface_hub takes a second

    if place.is_file():
        text = place.read_text(encoding="utf-8")
        if model_card.MARK not in text and not any(told in text for told in TEMPLATES):
            raise UserError(f"{place}: somebody wrote it; move it away to have another one made")
    write_whole(place, model_card.card(record))
    print(f"written to {place}")
    return 0


def adapter_of(runs: Path, run_id: str) -> Path:
    """The folder of a run's adapter.

    Raises:
        UserError: it is not there.
    """
    folder = RunPaths(runs, run_id).adapter
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not there (any more), or below another folder: name it with runs=FOLDER"
        )
    return folder
