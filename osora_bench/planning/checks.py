"""Cross-field checks of a composed configuration."""

import math

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.config import Config, EvalConfig, MethodConfig, TrainerConfig

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = (None, "nf4", "int8")
LOSSES = ("text", "answer")
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
TRACKERS = ("none", "wandb", "tensorboard", "mlflow")
TRACKER_MODES = ("auto", "offline", "online")
BACKENDS = ("transformers", "vllm")
DEVICES = ("auto", "cpu", "cuda")
SHARDED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""They treat every number alone, so that a shard is stepped as in the whole."""
SHARDED_PRECISIONS = ("float32", "bfloat16")
"""With float16, processes would have to agree on the scale of the loss: one's overflow is all's."""

MODULES = (
    "a list in brackets of names of modules, such as [q_proj,v_proj], all-linear, or a regular "
    "expression that whole names match"
)


def problems(cfg: Config) -> list[str]:
    """Cross-field mistakes of one resolved configuration, each as one line that names the key."""
    return [
        *_choice_problems(cfg),
        *_method_problems(cfg.method),
        *_quantization_problems(cfg),
        *_count_problems(cfg),
        *_checkpoint_problems(cfg.trainer),
        *_suite_problems(cfg.eval),
        *_unscored_problems(cfg),
        *_sharing_problems(cfg.trainer),
        *_training_problems(cfg.trainer),
        *_empty_problems(cfg),
        *_seed_problems(cfg.seed),
    ]


def _choice_problems(cfg: Config) -> list[str]:
    """Of values that are one of a few words."""
    return [
        unknown(key, str(value), ["null" if one is None else one for one in choices])
        for key, value, choices in (
            ("model.dtype", cfg.model.dtype, DTYPES),
            ("model.quantization", cfg.model.quantization, QUANTIZATIONS),
            ("task.loss_on", cfg.task.loss_on, LOSSES),
            ("trainer.schedule", cfg.trainer.schedule, SCHEDULES),
            ("trainer.precision", cfg.trainer.precision, DTYPES),
            ("eval.backend", cfg.eval.backend, BACKENDS),
            ("tracker.report_to", cfg.tracker.report_to, TRACKERS),
            ("tracker.mode", cfg.tracker.mode, TRACKER_MODES),
            ("device", cfg.device, DEVICES),
        )
        if value not in choices
    ]


def _count_problems(cfg: Config) -> list[str]:
    """Of what is counted, and there is at least one of."""
    task, suite, trainer = cfg.task, cfg.eval, cfg.trainer
    counts = {
        "trainer.batch_size": trainer.batch_size,
        "trainer.micro_batch_size": trainer.micro_batch_size,
        "trainer.processes": trainer.processes,
        "task.max_length": task.max_length,
        "task.max_rows": task.max_rows,
        "task.validation_rows": task.validation_rows,
        "trainer.max_steps": trainer.max_steps,
        "eval.max_out_len": suite.max_out_len,
        "eval.batch_size": suite.batch_size,
        "eval.limit": suite.limit,
        **{f"eval.datasets.{d.name}.limit": d.limit for d in suite.datasets},
    }
    return [
        f"{key}={value}: must be at least 1"
        for key, value in counts.items()
        if value is not None and value < 1
    ]


def _checkpoint_problems(trainer: TrainerConfig) -> list[str]:
    minutes = trainer.checkpoint_minutes
    if minutes is None or 0 <= minutes < math.inf:
        return []
    return [f"trainer.checkpoint_minutes={minutes}: must be at least 0, or null"]


def _suite_problems(suite: EvalConfig) -> list[str]:
    """Of the sets that a suite has, and those that are left out of it."""
    names = [d.name for d in suite.datasets]
    mistakes = [
        f"eval.datasets.{d.name}.limit={d.limit}: the set has {d.questions} questions"
        for d in suite.datasets
        if d.limit is not None and d.limit > d.questions
    ]
    mistakes += [
        f"eval.datasets: two sets are called {name!r}; tell them apart by `name`, with `abbr` for "
        "what OpenCompass calls them"
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    mistakes += [
        unknown("set in eval.without", n, names) for n in suite.without or () if n not in names
    ]
    if suite.without == []:
        mistakes.append("eval.without=[]: name a set, or leave it null")
    if names and not suite.chosen:
        mistakes.append("eval.without leaves no set to score")
    return mistakes


def _unscored_problems(cfg: Config) -> list[str]:
    """Of a cell that is not scored: rows that are held out are then all that judges it."""
    if cfg.eval.datasets or cfg.task.validation_rows is not None:
        return []
    return [
        f"eval {cfg.eval.name}: no set to score; name one in eval.datasets, or let "
        "task.validation_rows hold rows out (which `rates` and `tune` in an experiment need)"
    ]


def _sharing_problems(trainer: TrainerConfig) -> list[str]:
    """Of how an optimiser step's rows and the weights are shared out."""
    count, mistakes = trainer.processes, []
    if trainer.batch_size % max(trainer.micro_batch_size * count, 1):
        factor = f" x trainer.processes={count}" if count > 1 else ""
        mistakes.append(
            f"trainer.batch_size={trainer.batch_size} is no multiple of "
            f"trainer.micro_batch_size={trainer.micro_batch_size}{factor}"
        )
    for key, value, choices in (
        ("optimizer", trainer.optimizer, SHARDED_OPTIMIZERS),
        ("precision", trainer.precision, SHARDED_PRECISIONS),
    ):
        if count > 1 and value not in choices:
            mistakes.append(
                f"trainer.{key}={value} cannot be shared by trainer.processes={count}; "
                f"what can: {', '.join(choices)}"
            )
    return mistakes


def _training_problems(trainer: TrainerConfig) -> list[str]:
    """Of how far a training goes."""
    mistakes = []
    if not trainer.learning_rate > 0:
        mistakes.append(f"trainer.learning_rate={trainer.learning_rate}: must be above 0")
    if trainer.max_steps is None and not trainer.epochs > 0:
        mistakes.append(f"trainer.epochs={trainer.epochs}: must be above 0")
    if not 0 <= trainer.warmup_ratio < 1:  # from 1 on, transformers would take it for steps
        mistakes.append(
            f"trainer.warmup_ratio={trainer.warmup_ratio}: a share of the steps, 0 to below 1"
        )
    return mistakes


def _empty_problems(cfg: Config) -> list[str]:
    """Of what must be named: modules to adapt, folders to write to."""
    mistakes, targets = [], cfg.model.target_modules
    if targets in ([], ""):
        mistakes.append("model.target_modules is empty: name at least one module, e.g. [q_proj]")
    elif not isinstance(targets, str | list) or not all(isinstance(n, str) and n for n in targets):
        mistakes.append(f"model.target_modules takes {MODULES}")
    mistakes += [
        f"{key}: is empty, name a folder" for key in ("ledger", "runs") if not getattr(cfg, key)
    ]
    return mistakes


def _seed_problems(seed: int) -> list[str]:
    return [] if 0 <= seed < 2**32 else [f"seed={seed}: must be between 0 and 2**32 - 1"]


def _quantization_problems(cfg: Config) -> list[str]:
    """Of what cannot be had on weights that are kept in 4 or 8 bits."""
    key = f"model.quantization={cfg.model.quantization}"
    init = (cfg.method.peft or {}).get("init_lora_weights", True)
    refused = {
        f"method {cfg.method.name} trains every weight": cfg.method.full,
        f"method {cfg.method.name} starts by changing the base weights, which would be rounded "
        "anew": cfg.method.start is not None or init in WEIGHT_CHANGING,
        "eval.merge=true would round the merged weights anew": cfg.eval.merge,
        f"eval.backend={cfg.eval.backend} reads the weights as they are on disk": (
            cfg.eval.backend == "vllm"
        ),
        f"trainer.processes={cfg.trainer.processes}: quantised weights are not shared out": (
            cfg.processes > 1
        ),
    }
    if cfg.model.quantization is None:
        return []
    return [f"{key}: {reason}" for reason, holds in refused.items() if holds]


WEIGHT_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of PEFT's LoRA that take something off the base weights."""


def _method_problems(method: MethodConfig) -> list[str]:
    rank = method.rank
    if method.full and method.peft is not None:
        return [f"method {method.name}: full=true trains every weight; it takes no peft section"]
    if rank is None:
        return []
    if rank < 1:
        return [f"method.rank={rank} for {method.name}: a rank is at least 1"]
    if method.peft is None:
        return [f"method.rank={rank}: method {method.name!r} has no adapter, so no rank"]
    if rank not in method.peft.values():
        return [
            f"method.rank={rank} has no effect: conf/method/{method.name}.yaml does not use "
            "${method.rank} in its peft section"
        ]
    return []


def check_config(cfg: Config, where: str) -> None:
    """Raise UserError with every problem of the configuration `where` at once."""
    mistakes = problems(cfg)
    if mistakes:
        raise UserError(f"{where}: " + "\n  ".join(["cannot run", *mistakes]))
