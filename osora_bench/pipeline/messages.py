"""What people are told of cells."""

from collections import Counter
from collections.abc import Iterable, Sequence

from osora_bench.common.exits import FAILED, OK
from osora_bench.common.progress import say
from osora_bench.planning.cell import Cell, State
from osora_bench.planning.identity import revision
from osora_bench.records.record import held_out_loss
from osora_bench.records.schema import Record


def where(cell: Cell) -> str:
    """On which host, in which process, since when a cell runs."""
    holder = cell.holder or {}
    if not holder:
        return ""
    job = f", job {holder['job']}" if holder["job"] else ""
    return f" on {holder['host']} (pid {holder['pid']}{job}) since {holder['since']}"


def verdict(cells: Sequence[Cell]) -> int:
    """Say what became of every cell, by state; the exit status: OK only if all have their
    record."""
    states = {cell.run_id: cell.state for cell in cells}
    for cell in sorted(cells, key=lambda c: list(State).index(states[c.run_id])):
        state = states[cell.run_id]
        if state == State.FAILED:
            say(f"failed: {cell.label}: {cell.error}  (see {cell.paths.failure})")
        elif state == State.DAMAGED:
            say(f"damaged: {damage(cell)}")
        elif state != State.DONE:
            say(f"{state}: {cell.label}{where(cell) if state == State.RUNNING else ''}")
    say(f"{len(cells)} cells: {counted(states.values())}")
    say(f"records: {', '.join(sorted({str(cell.ledger) for cell in cells}))}")
    return OK if set(states.values()) <= {State.DONE} else FAILED


def counted(states: Iterable[str]) -> str:
    """`3 done, 1 failed`."""
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def warnings(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know of cells before their numbers, each once."""
    lines: dict[str, None] = {}
    for cell in cells:
        model, task = cell.config.model, cell.config.task
        if revision(cell.config) == "UNPINNED":
            line = f"model {model.name} is UNPINNED: {model.path} may change under its name"
            lines[line] = None
        if cell.config.trains and task.warning is not None:
            lines[f"task {task.name}: {task.warning}"] = None
    return list(lines)


def damage(cell: Cell) -> str:
    """What to do about a record that cannot be read."""
    return f"{cell.record} is damaged and left alone: move it away to run {cell.label} again"


def less_memory(cell: Cell) -> str:
    """The settings by which a cell takes less memory."""
    micro = cell.config.trainer.micro_batch_size
    return (
        f"trainer.micro_batch_size (now {micro}), trainer.gradient_checkpointing=true or "
        "eval.batch_size"
    )


def summary_of_cell(cell: Cell, record: Record) -> str:
    """One line of a finished cell: scores, seconds, and the loss on the held-out rows, by which
    settings are chosen; the last training step's where there are none."""
    if record["training"] and "diverged" in record["training"]:
        return f"{cell.label}: diverged, {record['training']['diverged']}"
    names = [dataset.name for dataset in cell.config.eval.chosen]  # a record sorts them
    scores = "  ".join(f"{name} {record['scores'][name]['accuracy']:.2f}" for name in names)
    seconds = record["measured"]["seconds"]
    return (
        f"{cell.label}: {scores}{_loss(record)}  "
        f"(train {seconds['train']:.1f} s, evaluate {seconds['evaluate']:.1f} s)"
    )


def _loss(record: Record) -> str:
    if (held_out := held_out_loss(record)) is not None:
        return f"  held-out loss {held_out['loss']:.4f}"
    return f"  loss {record['training']['loss'][-1][1]:.3f}" if record["training"] else ""
