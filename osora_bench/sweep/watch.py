"""What happens to the cells of a sweep that other processes run, told as it happens."""

from osora_bench.common.progress import say
from osora_bench.pipeline.messages import damage, summary_of_cell
from osora_bench.planning.cell import Cell, State
from osora_bench.records import record
from osora_bench.sweep.frozen_plan import Frozen


class Watch:
    """Tells of each cell once, when it is settled.

    Attributes:
        open: the cells that were not settled at the last look; at first all, since a cell may have
            been settled since its sweep was put together.
    """

    def __init__(self, sweep: Frozen) -> None:
        self.sweep = sweep
        self.open = list(sweep.cells)

    def look(self) -> None:
        """Say which cells have been settled since the last look."""
        cells, self.open = self.open, []
        for cell in cells:
            if self.sweep.settled(cell):
                self._tell(cell)
            else:
                self.open.append(cell)

    def _tell(self, cell: Cell) -> None:
        state = cell.state
        if state == State.DONE:
            say(summary_of_cell(cell, record.read_record(cell.record)))
        elif state == State.DAMAGED:
            say(damage(cell))
        else:
            say(f"{cell.label}: FAILED, {cell.error}  (see {cell.paths.failure})")
