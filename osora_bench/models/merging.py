"""Whether an adapter can be merged into the weights, found without them."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch

from osora_bench.common.errors import UserError
from osora_bench.models import counting
from osora_bench.models.skeleton import tied_layers
from osora_bench.planning.blank import blank
from osora_bench.planning.config import Config, ModelConfig, plain

ASKED = "eval.merge=true"
INSTEAD = "eval.merge=false evaluates it as it was trained"


def check_method(cfg: Config) -> None:
    """Refuse to train what could not be merged afterwards, where `eval.merge` asks for that.

    Raises:
        UserError: as `check_merge`.
    """
    if not cfg.eval.merge or cfg.method.peft is None:
        return
    model = ModelConfig(
        name=cfg.model.name,
        path=cfg.model.path,
        architecture=cfg.model.architecture,
        target_modules=cfg.model.target_modules,
    )
    _check(json.dumps({"model": plain(model), "method": plain(cfg.method)}))


@cache
def _check(sections: str) -> None:
    cfg = Config.of(json.loads(sections))
    with suppress(counting.NeedsWeights):
        adapted = counting.adapt(cfg, blank(cfg.model))
        who = f"method {cfg.method.name}: {ASKED}"
        check_merge(adapted, who)
        try:
            merge(adapted, who)
        except UserError as error:
            if "meta" not in str(error.__cause__).lower():  # torch's: it needs numbers for this
                raise


def check_merge(adapted: Any, who: str = ASKED, instead: str = INSTEAD) -> None:
    """Refuse to merge an adapter that PEFT cannot merge and unmerge, or that shares a weight.

    Args:
        who: what asks for it; `instead`: what would do without.

    Raises:
        UserError: prompts, OSF and the like; a weight that is not its layer's alone.
    """
    kind = type(getattr(adapted, "active_peft_config", None)).__name__
    if not hasattr(adapted, "merge_adapter"):
        raise UserError(f"{who}: {kind} cannot be merged, PEFT has no merge of it; {instead}")
    with _silent():
        try:
            adapted.unmerge_adapter()  # nothing is merged: a question, whether it can be
        except NotImplementedError as error:
            raise UserError(
                f"{who}: {kind} cannot be merged and taken out: {error}; {instead}"
            ) from error
    if tied := tied_layers(adapted):
        raise UserError(
            f"{who}: the adapter cannot be merged: another module reads the weight of {tied[0]} "
            f"too (tied embeddings, replicated layers), and would change with it; {instead}"
        )


def merge(adapted: Any, who: str = ASKED, instead: str = INSTEAD, safe: bool = False) -> None:
    """Merge an adapter into the weights; `safe`: not if they would hold NaN.

    Raises:
        UserError: as `check_merge`, or what PEFT refuses of this adapter or these layers.
    """
    check_merge(adapted, who, instead)
    try:
        adapted.merge_adapter(safe_merge=safe)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(f"{who}: the adapter cannot be merged: {error}; {instead}") from error


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
