"""A Hugging Face model card of a run's adapter, of its record alone."""

import json
import re
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from osora_bench.common import paths
from osora_bench.planning.config import Config
from osora_bench.records.schema import Record
from osora_bench.reporting.numbers import percent, scientific

PLAIN_LICENCES = ("apache-2.0", "mit", "llama2", "llama3", "llama3.1", "llama3.2", "gemma")
"""Those that the hub has a name for, among those of models; any other is told by its own."""
MARK = "<!-- made by osora-bench card -->"
"""Tells a card of ours, which may be made anew, from one that somebody wrote."""


def card(record: Record) -> str:
    """The README.md of a run's adapter: the hub's metadata, with the results, and a text."""
    config = Config.of(record["config"])
    base = hub_id(config)
    text = (files(__package__) / "model_card.md").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_escaped
    )
    environment.filters |= {"code": _code, "literal": _literal, "address": _address}
    body = environment.from_string(text).render(
        config=config,
        record=record,
        base=base,
        revision=config.model.revision,
        imported=_imported(config),
        rate=scientific(config.trainer.learning_rate),
        scores=_scores(record, config),
        commit=_commit(record),
        trainable=record["parameters"].get("trainable"),
    )
    return f"---\n{_metadata(record, config, base).to_yaml()}\n---\n\n{MARK}\n\n{body}\n"


ACTIVE = re.compile(r"([\\`*_\[\]<>|#&~$])")
"""What Markdown, or HTML in it, would take for more than a character."""


def _escaped(value: Any) -> Any:
    """A text as Markdown that shows it, on one line; what a filter made stays as it is."""
    if isinstance(value, Markup):
        return value
    return ACTIVE.sub(r"\\\1", " ".join(str(value).split()))


def _code(value: Any) -> Markup:
    """A text between the backticks of a code span: nothing but another backtick ends it."""
    return Markup(" ".join(str(value).replace("`", "'").split()))


def _literal(value: Any) -> Markup:
    """A text as a string of Python, which ends no block of code either."""
    return Markup(json.dumps(str(value), ensure_ascii=False).replace("`", "\\x60"))


def _address(value: Any) -> Markup:
    return Markup(quote(str(value), safe="/"))


def _commit(record: Record) -> str | None:
    code = record["provenance"]["code"]
    return None if code["commit"] is None else code["commit"] + " and changes" * bool(code["dirty"])


def hub_id(config: Config) -> str | None:
    """The base model's name on the hub; None where the run read it from a folder."""
    return None if paths.resolve(config.model.path) is not None else config.model.path


def _imported(config: Config) -> Markup | None:
    """The module that makes the adapter's method known to PEFT, where it is none of PEFT's own."""
    target = str((config.method.peft or {}).get("_target_", ""))
    package = target.rpartition(".")[0]
    own = package.partition(".")[0] == "peft"
    named = all(part.isidentifier() for part in package.split("."))
    return Markup(package) if named and not own else None


def _metadata(record: Record, config: Config, base: str | None) -> ModelCardData:
    licence = config.model.licence
    plain = licence in PLAIN_LICENCES
    told: dict[str, Any] = {} if plain or licence is None else {"license_name": licence}
    return ModelCardData(
        model_name=f"{config.method.label} on {config.model.label}, {config.task.label}",
        base_model=base,
        library_name="transformers" if config.method.full else "peft",
        license=licence if plain else None if licence is None else "other",
        pipeline_tag="text-generation",
        tags=["osora-bench", config.method.name],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=name,
                dataset_name=label,
                metric_type="accuracy",
                metric_name=f"accuracy, {score['k']} of {score['n']} questions",
                metric_value=float(percent(score["k"], score["n"])),
            )
            for name, label, score in _results(record, config)
        ]
        or None,
        **told,
    )


def _results(record: Record, config: Config) -> list[tuple[str, str, Any]]:
    labels = {dataset.name: dataset.label for dataset in config.eval.datasets}
    return [(name, labels.get(name, name), score) for name, score in record["scores"].items()]


def _scores(record: Record, config: Config) -> list[dict[str, Any]]:
    return [
        {
            "label": label,
            "accuracy": percent(score["k"], score["n"]),
            "k": score["k"],
            "n": score["n"],
            "of": score["questions"],
        }
        for _, label, score in _results(record, config)
    ]
