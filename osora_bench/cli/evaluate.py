"""The command `osora-bench evaluate`: a model or an adapter from a folder, scored on a suite."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from osora_bench.common import interruption
from osora_bench.common.errors import UserError, unknown
from osora_bench.common.files import check_writable, write_whole
from osora_bench.common.progress import say
from osora_bench.evaluation import checks
from osora_bench.models.adapter_config import check_adapter, read_settings
from osora_bench.planning.checks import check_config
from osora_bench.planning.compose import (
    check_overrides,
    compose,
    composer,
    group_choices,
    quoted,
    resolve,
)
from osora_bench.planning.config import Config, identity_of, plain

OF = "evaluation.json"
"""In a folder that --output names: which evaluation's answers and scores it holds."""


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    verb = argparse.ArgumentParser(
        prog="osora-bench evaluate",
        description="Score a model, or an adapter on it, on a suite of OpenCompass data sets. "
        "What is interrupted goes on where it stopped.",
    )
    verb.add_argument("--model", required=True, help="a file of conf/model, or a model's folder")
    verb.add_argument("--suite", required=True, help="a file of conf/eval")
    verb.add_argument("--adapter", type=Path, help="folder of an adapter of any PEFT method")
    verb.add_argument("--sets", nargs="+", help="only these sets of the suite")
    verb.add_argument("--limit", type=int, help="only the first so many questions of each set")
    verb.add_argument("--merge", action="store_true", help="merge the adapter into the weights")
    verb.add_argument("--plain", action="store_true", help="no chat template: a base model")
    verb.add_argument("--backend", default="transformers", help="transformers or vllm")
    verb.add_argument("--dtype", help="float32, bfloat16 or float16 (default: the model's own)")
    verb.add_argument("--output", type=Path, help="folder to write (default: below runs/evaluate)")
    verb.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="any configuration key")
    return verb


def evaluate_verb(arguments: Sequence[str]) -> int:
    """Evaluate, print the scores, and write them beside the answers. Returns the exit status."""
    args = parsed(arguments)
    cfg = configuration(args)
    check_call(args, cfg)
    say("loading torch, transformers and OpenCompass ...")
    from osora_bench.evaluation import evaluate, suites
    from osora_bench.models.adapters import with_saved_adapter
    from osora_bench.models.base import Workspace, quiet_libraries
    from osora_bench.models.memory import bound_threads

    quiet_libraries()
    bound_threads()
    sets = suites.prepare(cfg.eval, Path(cfg.runs))
    base = Workspace().base(cfg, own_tokenizer(args))
    model = base.model if args.adapter is None else with_saved_adapter(base, args.adapter, cfg)
    folder = args.output or Path(cfg.runs) / "evaluate" / name(args, cfg, model)
    if args.output is not None:
        take(folder, identity(args, cfg, model))
    with interruption.current():
        scores = evaluate.evaluate(model, base.tokenizer, cfg, sets, folder, label=args.model)
    write_scores(folder, args, cfg, scores)
    evaluate.forget(folder)
    print(scores_table(scores))
    print(f"written to {folder}")
    return 0


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line. --sets takes whatever follows it; what is no set's name is an override."""
    args = parser().parse_intermixed_args(arguments)
    if args.sets is not None:
        args.overrides += [a for a in args.sets if "=" in a]
        args.sets = [a for a in args.sets if "=" not in a]
    return args


def configuration(args: argparse.Namespace) -> Config:
    """A resolved configuration without training, from the options and overrides.

    Raises:
        UserError: an unknown model, suite, set or key.
    """
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: must be at least 1")
    for override in args.overrides:
        if "=" not in override:
            raise UserError(f"{override}: neither an option nor KEY=VALUE")
    if args.sets == []:
        raise UserError("--sets: name a set of the suite")
    if args.suite not in group_choices("eval"):
        raise UserError(unknown("eval", args.suite, group_choices("eval")))
    overrides = ["method=none", "task=toy", "trainer=toy", f"eval={args.suite}", *_model(args)]
    overrides += [f"eval.merge={args.merge}", f"eval.backend={quoted(args.backend)}"]
    overrides += args.overrides
    check_overrides(overrides)
    with composer():
        cfg = resolve(compose(overrides, "evaluate"), "evaluate")
    suite = cfg.eval
    names = [d.name for d in suite.datasets]
    for set_name in args.sets or ():
        if set_name not in names:
            raise UserError(unknown(f"set of suite {args.suite}", set_name, names))
    if args.sets is not None:
        suite.without = [name for name in names if name not in args.sets] or None
    if args.limit is not None:
        for dataset in suite.datasets:
            dataset.limit = min(args.limit, dataset.questions)
    check_config(cfg, "evaluate")
    return cfg


def _model(args: argparse.Namespace) -> list[str]:
    """Overrides for a member of conf/model, or for a folder of any model."""
    dtype = [f"model.dtype={quoted(args.dtype)}"] if args.dtype else []
    if args.model in group_choices("model"):
        return [f"model={args.model}", *dtype, *(["model.chat=false"] if args.plain else [])]
    folder = Path(args.model)
    if not (folder / "config.json").is_file():
        message = unknown("model", args.model, group_choices("model"))
        raise UserError(f"{message}; nor is it a folder with a config.json")
    model_config = read_settings(folder / "config.json")
    stored = model_config.get("dtype") or model_config.get("torch_dtype") or "float32"
    chat = not args.plain and _is_asked_by_chat(folder, args.adapter)
    called = quoted(folder.absolute().name or str(folder))
    settings = {
        "path": quoted(str(folder.absolute())), "name": called, "label": called,
        "revision": "null", "architecture": "null", "needs_gpu": "false", "gated": "false",
        "licence": "null", "chat": str(chat).lower(), "dtype": quoted(str(stored)),
    }  # fmt: skip
    return ["model=toy", *(f"model.{key}={value}" for key, value in settings.items()), *dtype]


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and "chat_template" in read_settings(settings)


def _is_asked_by_chat(folder: Path, adapter: Path | None) -> bool:
    """Whether there is a chat template where transformers' tokenizers look for it: in a model's
    folder, or beside the tokenizer that lies with an adapter.

    Raises:
        UserError: there is one where they do not: the model would be asked without it.
    """
    if _has_chat_template(folder) or (adapter is not None and _brings_tokenizer(adapter)):
        return True
    names = ("chat_template.json", "chat_template.jinja")
    unread = [p / n for p in (folder, adapter) if p is not None for n in names]
    for place in unread:
        if place.is_file():
            raise UserError(
                f"{place}: transformers' tokenizers do not read it there; as {names[1]} in "
                f"{folder} it is used, and --plain asks without a template"
            )
    return False


def _brings_tokenizer(adapter: Path) -> bool:
    return (adapter / "tokenizer_config.json").is_file() and _has_chat_template(adapter)


def own_tokenizer(args: argparse.Namespace) -> Path | None:
    """The adapter's folder, if a tokenizer with a chat template was saved with it: it was trained
    on dialogues that these wrote. PEFT reads a tokenizer there too. So it is if embeddings lie with
    it: words were added to the one of the model."""
    if args.adapter is None:
        return None
    from osora_bench.models.embeddings import saved_words

    folder: Path = args.adapter
    added = (folder / "tokenizer_config.json").is_file() and saved_words(folder) > 0
    return folder if added or (_brings_tokenizer(folder) and not args.plain) else None


def check_call(args: argparse.Namespace, cfg: Config) -> None:
    """Refuse what cannot run before anything large is loaded."""
    if args.adapter is not None:
        check_adapter(args.adapter)
    from osora_bench.models.context import check_context
    from osora_bench.models.tokenizers import load_tokenizer
    from osora_bench.models.weights import check_weights

    folder = args.output or Path(cfg.runs)
    checks.check_suite(cfg.eval, folder, "with --output or runs=")
    check_writable(folder)
    if args.output is not None:
        check_free(folder, identity(args, cfg))
    check_weights(cfg.model)
    check_context(cfg.model)
    load_tokenizer(cfg.model, own_tokenizer(args))
    if args.merge and args.adapter is None:
        raise UserError("--merge has no effect without --adapter")


def identity(args: argparse.Namespace, cfg: Config, model: Any = None) -> dict[str, Any]:
    """What tells an evaluation from another one; before the model is loaded, as far as is known."""
    adapter = None if args.adapter is None else args.adapter.absolute().name
    told = {"model": cfg.model.name, "adapter": adapter, "chat": cfg.model.chat}
    told["eval"] = {"name": cfg.eval.name, **identity_of(cfg.eval)}
    if model is None:
        return told
    from osora_bench.models.base import content

    return told | {"content": content(model)}


def check_free(folder: Path, wanted: dict[str, Any]) -> None:
    """Refuse a folder with another evaluation's answers: nobody could tell them apart later.

    Raises:
        UserError: its note differs in a key of `wanted`, or it has scores or answers and no note.
    """
    if not (folder / OF).is_file():
        if (folder / "scores.json").exists() or (folder / "answers").exists():
            raise UserError(f"--output {folder}: {_TAKEN}")
        return
    held = read_settings(folder / OF)
    if differing := [key for key, value in wanted.items() if held.get(key) != value]:
        what = {
            "content": "set of weights",
            "chat": "chat template",
            "eval": "suite, sets or questions",
        }
        told = ", ".join(f"another {what.get(key, key)}" for key in differing)
        raise UserError(f"--output {folder}: {_TAKEN} ({told})")


_TAKEN = "holds the answers of another evaluation: name another folder, or empty this one"


def take(folder: Path, wanted: dict[str, Any]) -> None:
    """Write down whose answers a folder holds; UserError if they are another evaluation's."""
    check_free(folder, wanted)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / OF, json.dumps(wanted, indent=1) + "\n")


def name(args: argparse.Namespace, cfg: Config, model: Any) -> str:
    """A folder's name that another model, adapter or suite does not share."""
    from osora_bench.models.base import content

    identity = json.dumps([content(model), plain(cfg.eval), cfg.model.chat], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    adapter = "" if args.adapter is None else f"-{args.adapter.absolute().name}"
    return f"{cfg.model.name}{adapter}-{args.suite}-{digest}"


def write_scores(
    folder: Path, args: argparse.Namespace, cfg: Config, scores: dict[str, Any]
) -> None:
    """Keep the scores with what they are of."""
    from osora_bench.evaluation.journal import cannot_write
    from osora_bench.evaluation.scores import not_run
    from osora_bench.models.base import device_of
    from osora_bench.records.provenance import circumstances

    report = {
        "model": cfg.model.name,
        "adapter": None if args.adapter is None else args.adapter.name,
        "eval": plain(cfg.eval),
        "scores": {key: asdict(score) for key, score in scores.items()},
        "not_run": not_run(cfg.eval, scores),
        "provenance": circumstances(device_of(cfg)),
    }
    place = folder / "scores.json"
    try:
        write_whole(place, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise cannot_write(place, error) from error


def scores_table(scores: dict[str, Any]) -> str:
    """The scores as lines of text."""
    rows = []
    for key, score in scores.items():
        limited = "" if score.n == score.questions else f" of {score.questions}"
        corrected = "" if score.corrected is None else f"{100 * score.corrected['k'] / score.n:.2f}"
        rows.append(
            [key, f"{score.n}{limited}", f"{score.accuracy:.2f}", corrected, score.unread,
             score.too_long, score.cut]
        )  # fmt: skip
    heads = ["set", "questions", "accuracy", "corrected", "unread", "too long", "cut"]
    return str(tabulate(rows, heads, disable_numparse=True))
