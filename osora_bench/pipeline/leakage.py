"""Whether a cell trains on the questions that it is scored on."""

from osora_bench.benchdata.overlap import Overlap, Questions
from osora_bench.evaluation.suites import PreparedSets, questions
from osora_bench.planning.cell import Cell
from osora_bench.records.schema import LeakageRecord
from osora_bench.training import data


def overlaps(cell: Cell, sets: PreparedSets) -> dict[str, Overlap]:
    """By set, the questions that stand in the rows that the cell trains on: those of its seed.

    Raises:
        UserError: as `data.dialogues`.
    """
    dialogues = data.dialogues(cell.config.task, cell.config.seed)
    rows = [f"{dialogue.prompt}\n{dialogue.response}" for dialogue in dialogues]
    return {name: Questions(questions(sets[name])).in_rows(rows) for name in sets}


def as_recorded(found: dict[str, Overlap]) -> dict[str, LeakageRecord]:
    """Of the sets that have any."""
    return {
        name: {"exact": len(one.exact), "near": len(one.near), "questions": one.questions}
        for name, one in found.items()
        if one.exact or one.near
    }


def warnings(found: dict[str, LeakageRecord]) -> list[str]:
    """A line for each set of which something was found."""
    return [
        f"{name}: {one['exact']} of {one['questions']} questions stand in the training rows, "
        f"{one['near']} others in part"
        for name, one in found.items()
    ]
