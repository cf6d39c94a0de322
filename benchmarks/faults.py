"""Break a sweep again and again, and count what is lost.

    python benchmarks/faults.py workers --kills 60
    python benchmarks/faults.py slurm --kills 60
    python benchmarks/faults.py disk

`workers`, `slurm`: a sweep of 14 toy cells, in two workers or on a throw-away cluster of two nodes
(tests/sweep/slurm_cluster.py). At random moments a process of it is killed with SIGKILL: one that
runs a cell, a worker or job that starts up, the one that was started at the terminal, the one that
submits, the cluster's daemons. Now and then a byte of a checkpoint or of the answers so far is
turned, or a record is cut short. Whenever it ends, the sweep is started again, until every cell is
done; and while kills are wanted, the same sweep begins anew in another folder.

`disk`: one cell on a file system of its own that is full after 1, 2, 3, ... pages, up to all that
the cell writes; then again with room. It mounts a tmpfs, as root or below
`unshare --map-root-user --mount`.

In the end every record is held against that of a run that was left alone, and the ledger may hold
nothing else.
"""

import argparse
import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from osora_bench.common import exits, paths
from osora_bench.pipeline import attempt as attempts
from osora_bench.pipeline.attempt import attempt, explained, session
from osora_bench.planning.cell import Cell, cell_of
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.planning.experiments import load_experiment
from osora_bench.planning.grid import expansion
from osora_bench.records import record

sys.path.append(str(paths.ROOT))
from tests.sweep.slurm_cluster import DAEMONS, Cluster

EXPERIMENT = "table3-toy"
SETTINGS = ["trainer.max_steps=25", "trainer.checkpoint_minutes=0",
            "eval.datasets.0.limit=100", "eval.datasets.1.limit=100"]  # fmt: skip
DAMAGES = 3
"""Of each kind, at least."""
MARK = "OSORA_FAULTS"
"""Environment of every process of the sweep under attack: only such are ever killed."""
START = """\
import sys; from osora_bench.sweep.slurm import sweep as slurm
slurm.LOOK_EVERY, slurm.ASK_EVERY, slurm.GRACE = 0.5, 1.0, 3.0
from osora_bench.cli.main import main; sys.exit(main())"""
PAGE = 4096
ROOM = 64 << 20


def numbers(of: Cell) -> dict[str, object]:
    """A record without what may differ between two runs of a cell."""
    body = record.read_record(of.record)
    return {k: v for k, v in body.items() if k not in ("measured", "sha256")}


class Sweep:
    """A sweep in a folder of its own; `how` says what runs it."""

    def __init__(self, place: Path, how: list[str], environment: dict[str, str]) -> None:
        self.place = place
        self.overrides = [f"ledger={place}/ledger", f"runs={place}/runs", *SETTINGS]
        self.cells = expansion(load_experiment(EXPERIMENT), self.overrides).cells
        self.how = how
        self.environment = {**os.environ, **environment, MARK: str(place)}
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        place.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start it, or attach to what of it still runs."""
        command = [sys.executable, "-c", START, "run", f"experiment={EXPERIMENT}"]
        with (self.place / "starts.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.how, *self.overrides],
                stdout=log, stderr=log, env=self.environment,
            )  # fmt: skip
        self.starts += 1

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def done(self) -> bool:
        return all(one.state == "done" for one in self.cells)

    def processes(self, what: str) -> list[psutil.Process]:
        """Those of its processes whose command line has a word."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = one.environ().get(MARK) == str(self.place)
                if mine and any(what in word for word in one.cmdline()):
                    found.append(one)
        return found

    def holders(self) -> list[psutil.Process]:
        """The processes that run a cell."""
        pids = [h["pid"] for one in self.cells if (h := one.holder) is not None and "pid" in h]
        found = []
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(pid))
        return found


class Attack:
    """What is done to sweeps, one after another, and how often.

    Each deed returns whether there was anything to do it to.
    """

    sweep: Sweep
    spoilt: Counter[str]
    """How often a record of this sweep was damaged, by run id."""

    def __init__(self, chance: random.Random, cluster: Cluster | None) -> None:
        self.chance = chance
        self.cluster = cluster
        self.kills = 0
        self.told: Counter[str] = Counter()

    def turn_to(self, sweep: Sweep) -> None:
        """Attack this one from now on."""
        self.sweep, self.spoilt = sweep, Counter()

    def strike(self, enough: int) -> bool:
        """One fault of a random kind, if there is anything that it could hit; whether that was
        still wanted: fewer kills than `enough`, or fewer damages than DAMAGES."""
        deeds = self._damages()
        if self.kills >= enough:
            deeds = {what: deed for what, deed in deeds.items() if self.told[what] < DAMAGES}
        else:
            deeds |= self._kills()
        if deeds:
            what = self.chance.choice(list(deeds))
            self.told[what] += deeds[what]()
        return bool(deeds)

    def _damages(self) -> dict[str, Callable[[], bool]]:
        return {
            "a byte of a checkpoint turned and its cell killed": self._checkpoint,
            "a byte of the answers turned and its cell killed": self._journal,
            "a record cut short": self._record,
        }

    def _kills(self) -> dict[str, Callable[[], bool]]:
        def of(what: str) -> Callable[[], bool]:
            return lambda: self._kill(self.sweep.processes(what))

        deeds = {
            "the process of a cell killed": lambda: self._kill(self.sweep.holders()),
            "the starting process killed": of("experiment="),
            "both killed": lambda: (
                self._kill(self.sweep.processes("experiment=")) & self._kill(self.sweep.holders())
            ),
        }
        if self.cluster is None:
            return deeds | {"a worker killed": of("osora_bench.sweep.worker_process")}
        return deeds | {
            "a job killed": of("submitit.core._submit"),
            "the submitting process killed": of("osora_bench.sweep.slurm.submit_process"),
            "slurmctld killed": functools.partial(self._daemon, "slurmctld"),
            "a slurmd killed": functools.partial(self._daemon, "slurmd"),
        }

    def _kill(self, victims: list[psutil.Process]) -> bool:
        if not victims:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            self.chance.choice(victims).kill()
            self.kills += 1
        return True

    def _daemon(self, kind: str) -> bool:
        assert self.cluster is not None
        names = [n for n in DAEMONS if (n == "slurmctld") == (kind == "slurmctld")]
        name = self.chance.choice(names)
        self.cluster.kill(name)
        self.kills += 1
        time.sleep(self.chance.uniform(0.0, 4.0))
        self.cluster.start(name)
        return True

    def _checkpoint(self) -> bool:
        return self._turn_a_byte("trainer/checkpoint-*/*")

    def _journal(self) -> bool:
        return self._turn_a_byte("evaluation/journal.jsonl")

    def _turn_a_byte(self, pattern: str) -> bool:
        """Kill the process of a cell that has such a file, and damage the file."""
        ready = [(c, p) for c in self.sweep.cells for p in c.paths.folder.glob(pattern)]
        for of, path in self.chance.sample(ready, len(ready)):
            pid = (of.holder or {}).get("pid")
            if pid is None:
                continue
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                os.kill(pid, signal.SIGKILL)
                self.kills += 1
                content = bytearray(path.read_bytes())
                content[self.chance.randrange(len(content))] ^= 1
                path.write_bytes(content)
                return True
        return False

    def _record(self) -> bool:
        kept = [one for one in self.sweep.cells if one.state == "done"]
        if not kept:
            return False
        victim = self.chance.choice(kept)
        victim.record.write_bytes(victim.record.read_bytes()[: -self.chance.randint(1, 500)])
        self.spoilt[victim.run_id] += 1
        return True

    def mend(self) -> None:
        """What a person is asked to do: by the program, to move a damaged record away; by SLURM, to
        see to a node that it has drained, as after a job that the node did not take."""
        if self.cluster is not None:
            with contextlib.suppress(subprocess.SubprocessError):  # its daemon starts up just now
                self.cluster.mend_nodes()
        for one in self.sweep.cells:
            if one.state == "damaged":
                times = self.spoilt[one.run_id]
                one.record.rename(self.sweep.place / f"{one.run_id}.damaged-{times}")


def attacked(sweep: Sweep, attack: Attack, kills: int) -> bool:
    """Strike at a sweep until every cell is done; whether more is wanted."""
    wanted = True
    attack.turn_to(sweep)
    while not sweep.done:
        if sweep.ended:
            attack.mend()
            sweep.start()
        time.sleep(attack.chance.uniform(0.5, 5.0))
        wanted = attack.strike(kills)
    assert sweep.process is not None
    sweep.process.wait()
    return wanted


def times_done(sweep: Sweep, of: Cell) -> int:
    """How often a cell was said to be done by what ran it."""
    logs = [*sweep.place.glob("runs/plans/*/worker-*.log"),
            *sweep.place.glob("runs/plans/*/slurm-*/*_log.out")]  # fmt: skip
    line = f"{of.label}: gsm8k-toy "
    return sum(log.read_text(errors="replace").count(line) for log in logs)


class Outcome(NamedTuple):
    """What is left of sweeps that were attacked, in records."""

    wanted: int = 0
    """As many as there are cells."""
    same: int = 0
    """Equal to those of a sweep that was left alone."""
    others: int = 0
    """Other files in the ledger."""
    twice: int = 0
    """Cells that were said to be done more often than their records were spoilt."""
    starts: int = 0

    @property
    def fine(self) -> bool:
        return self.same == self.wanted and not self.others and not self.twice


def outcome(sweep: Sweep, attack: Attack, whole: list[dict[str, object]]) -> Outcome:
    """Hold a sweep that is done against one that was left alone."""
    found = [numbers(one) for one in sweep.cells]
    ledger = {p.name for p in sweep.cells[0].ledger.iterdir()}
    twice = [c for c in sweep.cells if times_done(sweep, c) > 1 + attack.spoilt[c.run_id]]
    return Outcome(
        wanted=len(sweep.cells),
        same=sum(a == b for a, b in zip(whole, found, strict=True)),
        others=len(ledger - {one.record.name for one in sweep.cells}),
        twice=len(twice),
        starts=sweep.starts,
    )


def report(attack: Attack, outcomes: list[Outcome], seconds: float) -> bool:
    """Print the table; whether nothing was lost."""
    print("| fault | times |\n|---|---|")
    for what, count in sorted(attack.told.items()):
        if count:
            print(f"| {what} | {count} |")
    total = Outcome(*map(sum, zip(*outcomes, strict=True)))
    print(
        f"\n{attack.kills} kills, {len(outcomes)} sweeps of {outcomes[0].wanted} cells, "
        f"{total.starts} starts, {seconds / 60:.0f} min: {total.wanted} records, {total.same} "
        f"equal to those of a sweep that was left alone; other files in the ledgers: "
        f"{total.others}; done twice: {total.twice}"
    )
    return total.fine


def undisturbed(place: Path) -> list[dict[str, object]]:
    """The records of a sweep that is left alone."""
    sweep = Sweep(place, ["workers=2"], {})
    sweep.start()
    assert sweep.process is not None
    assert sweep.process.wait() == exits.OK, f"the undisturbed sweep failed: {place}"
    return [numbers(one) for one in sweep.cells]


@contextlib.contextmanager
def cluster_of(kind: str, place: Path) -> Iterator[Cluster | None]:
    """The cluster that a kind of sweep needs."""
    if kind == "workers":
        yield None
        return
    with Cluster(place / "cluster", patience=30) as cluster:
        yield cluster


def break_sweep(kind: str, place: Path, kills: int, seed: int) -> bool:
    """Attack a sweep; whether nothing was lost."""
    whole = undisturbed(place / "alone")
    small = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]
    how = ["workers=2"] if kind == "workers" else ["hydra/launcher=slurm", *small, "wait=2"]
    with cluster_of(kind, place) as cluster:
        environment = {} if cluster is None else cluster.environment
        attack = Attack(random.Random(seed), cluster)
        started, outcomes, wanted = time.monotonic(), [], True
        while wanted and all(one.fine for one in outcomes):
            sweep = Sweep(place / f"{kind}-{len(outcomes)}", how, environment)
            wanted = attacked(sweep, attack, kills)
            outcomes.append(outcome(sweep, attack, whole))
        return report(attack, outcomes, time.monotonic() - started)


@contextlib.contextmanager
def disk_of(place: Path, size: int) -> Iterator[None]:
    """A file system of so many bytes."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def resize(place: Path, size: int) -> None:
    """Give a file system another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)


def small_cell(place: Path) -> Cell:
    """A cell that writes everything that cells write."""
    overrides = [f"ledger={place}/ledger", f"runs={place}/runs", "method=osora", "method.rank=8",
                 "trainer.max_steps=3", "trainer.checkpoint_minutes=0",
                 "eval.datasets.0.limit=3", "eval.datasets.1.limit=3"]  # fmt: skip
    with composer():
        return cell_of(resolve(compose(overrides, "faults"), "faults"), overrides)


def in_a_child(of: Cell, log: Path) -> None:
    """Try a cell in a process of its own, which has the libraries already."""
    pid = os.fork()
    if pid == 0:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            attempts.explained = lambda error, of: print(_where(error)) or explained(error, of)
            try:
                session().prepare([of])
                attempt(of)
            except OSError as error:
                print(_where(error))
            finally:
                sys.stdout.flush()
                os._exit(0)
    os.waitpid(pid, 0)


def fill_disk(folder: Path, every: int) -> bool:
    """Give a cell a disk that is full after ever more pages; whether nothing was lost."""
    place, log = folder / "disk", folder / "log"
    session()
    with disk_of(place, ROOM):
        of = small_cell(place)
        in_a_child(of, log)
        whole = numbers(of)
    started, full, enough, wrong = time.monotonic(), 0, 0, []
    told: Counter[str] = Counter()
    pages = 0
    while enough < 3:  # sizes at which it went through
        pages += every
        with disk_of(place, pages * PAGE):
            in_a_child(of, log)
            left = sorted(p.name for p in of.ledger.glob("*"))
            if of.state == "done":
                enough += 1
            else:
                full += 1
                told[_said(log)] += 1
            broken = [n for n in left if n != of.record.name] or of.state == "damaged"
            resize(place, ROOM)
            in_a_child(of, log)
            same = of.state == "done" and numbers(of) == whole
            alone = [p.name for p in of.ledger.iterdir()] == [of.record.name]
            if broken or not same or not alone:
                wrong.append(pages)
                print(f"WRONG at {pages} pages: {left}, then {of.state}: {log.read_text()}")
    for line, count in sorted(told.items()):
        print(f"{count:4d}  {line}")
    print(
        f"\n{full} sizes at which the disk was full, {pages} pages in all, "
        f"{(time.monotonic() - started) / 60:.0f} min: with room, the right record in "
        f"{full - len(wrong)} of {full}"
    )
    return not wrong


def _where(error: BaseException) -> str:
    """What could not be written: the harness's own last frame, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "osora_bench" in frame.filename]
    names = [f"{Path(f.filename).name}:{f.name}" for f in (own or frames)[-1:] + frames[-1:]]
    return f"FULL {type(error).__name__} in {' > '.join(dict.fromkeys(names))}"


def _said(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if "FULL " in line]
    return lines[0] if lines else "the cell's folder could not be written"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("workers", "slurm", "disk"))
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="pages between two sizes of the disk")
    parser.add_argument("--folder", type=Path, help="a new one, to be looked at afterwards")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # its cluster ends with it
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        if args.kind == "disk":
            fine = fill_disk(folder, args.every)
        else:
            fine = break_sweep(args.kind, folder, args.kills, args.seed)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
