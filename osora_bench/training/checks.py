"""What can be refused of a training before a model is loaded."""

from typing import Any

from osora_bench.benchdata.sets import absent, data_folder
from osora_bench.common.errors import UserError, unknown
from osora_bench.models.adapter_config import instantiate
from osora_bench.models.dialogue import turns
from osora_bench.planning.cell import Cell
from osora_bench.training.data import dialogues

ATTENTIONS = (
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)
"""transformers' implementations."""


def check_rows(cell: Cell) -> None:
    """Training rows: every file that is missing, else what is wrong with the rows."""
    if not cell.config.trains:
        return
    task = cell.config.task
    files = [*task.row_files, *([] if task.retained is None else [task.retained])]
    missing = [line for file in files if (line := absent(file)) is not None]
    if missing:
        raise UserError("\n".join([*missing, data_folder()]))
    dialogues(task, cell.config.seed)


def check_turns(cell: Cell) -> None:
    """Rows whose answer the model's chat template does not write as it is."""
    from osora_bench.models.tokenizers import load_tokenizer

    cfg = cell.config
    if not cfg.trains or not cfg.chat:
        return
    try:
        rows = dialogues(cfg.task, cfg.seed)
    except UserError:  # what is wrong with them has been told already
        return
    tokenizer = load_tokenizer(cfg.model)
    for row in rows:
        turns(tokenizer, row.prompt, row.response)


def check_optimizer(cell: Cell) -> None:
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    trainer = cell.config.trainer
    for key, kinds in (("optimizer", OptimizerNames), ("schedule", SchedulerType)):
        names = [kind.value for kind in kinds]
        if (value := getattr(trainer, key)) not in names:
            raise UserError(unknown(f"trainer.{key}", value, names))


def check_precision(cell: Cell) -> None:
    """Refuse what accelerate leaves out without a word: float16 where there is no GPU.

    Raises:
        UserError: see there.
    """
    from osora_bench.models.base import device_of

    cfg = cell.config
    if not cfg.trains or cfg.trainer.precision != "float16" or device_of(cfg).type != "cpu":
        return
    raise UserError(
        "trainer.precision=float16: needs a GPU, on a CPU it would be float32; here: "
        "trainer.precision=bfloat16 or float32"
    )


def check_attention(cell: Cell) -> None:
    """An attention implementation that the model or this machine lacks.

    Raises:
        UserError: names those that it has.
    """
    from osora_bench.planning.blank import blank

    wanted, cfg = cell.config.trainer.attention, cell.config
    if not cfg.trains or wanted == "auto":
        return
    model: Any = blank(cfg.model)
    own = model.config.get_text_config()._attn_implementation
    others = ATTENTIONS if model._can_set_attn_implementation() else ()
    possible = [name for name in others if name != own and _takes(model, name)]
    if wanted not in (own, *possible):
        raise UserError(unknown("trainer.attention", wanted, ["auto", own, *possible]))


def _takes(model: Any, attention: str) -> bool:
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError):
        return False
    return True


def check_sharing(cell: Cell) -> None:
    """Models and methods whose weights cannot be shared out among processes."""
    model, method = cell.config.model, cell.config.method
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    from osora_bench.models.skeleton import decoder_layers
    from osora_bench.planning.blank import blank

    prefix = f"trainer.processes={cell.config.processes}"
    if not decoder_layers(blank(model)):
        raise UserError(
            f"{prefix}: transformers names no layers of {model.name} that could be shared out"
        )
    if method.peft is None:
        return
    settings = instantiate(method)
    if settings.is_prompt_learning:
        raise UserError(
            f"{prefix}: method {method.name} learns a prompt, which PEFT saves from whole "
            "weights only: trainer.processes=1"
        )
    if method.callbacks or method.optimizer or method.start_on_rows:
        raise UserError(
            f"{prefix}: method {method.name} has callbacks, an optimiser or a start on rows of "
            "its own, which see a whole model's weights: trainer.processes=1"
        )
    if hasattr(PEFT_TYPE_TO_TUNER_MAPPING[settings.peft_type], "update_and_allocate"):
        raise UserError(
            f"{prefix}: method {method.name} moves ranks between layers while it trains, for "
            "which it needs them whole: trainer.processes=1"
        )
