"""What happens to the cells of a sweep that other processes run, told as it happens."""

from osora_bench import record
from osora_bench.frozen import Frozen
from osora_bench.plan import Cell
from osora_bench.progress import say
from osora_bench.run import summary


class Watch:
    """Tells each change of a cell's state once."""

    def __init__(self, sweep: Frozen) -> None:
        self.sweep = sweep
        self.states = {cell.run_id: cell.state for cell in sweep.cells}

    def look(self) -> None:
        """Say what has changed since the last look."""
        for cell in self.sweep.cells:
            before, now = self.states[cell.run_id], cell.state
            if before == "done" or before == now == "running":
                continue
            self.states[cell.run_id] = now
            if now == "done":
                say(f"{summary(cell, record.read(cell.record))}")
            elif now == "failed" and before != "failed" and self.sweep.settled(cell):
                say(f"{cell.label}: FAILED, {cell.error}  (see {cell.paths.failure})")

    def all_settled(self) -> bool:
        """Whether no cell runs or waits."""
        return all(self._settled(cell) for cell in self.sweep.cells)

    def _settled(self, cell: Cell) -> bool:
        return self.states[cell.run_id] == "done" or self.sweep.settled(cell)
