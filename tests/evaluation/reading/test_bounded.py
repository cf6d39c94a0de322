"""A call that hangs is ended; a process that was asked to end does not wait for it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from osora_bench.common import interruption
from osora_bench.evaluation.reading.bounded import Bounded, TimedOut

TOWER = r"\boxed{5^{5^{5^{5^5}}-4}-5}"
"""An answer on which math-verify's solver hangs."""


def slow(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return seconds


def whose():
    return os.getpid()


def test_a_call_that_hangs_is_ended_and_the_next_one_is_answered():
    bounded = Bounded(slow, 0.5)
    assert bounded(0.01) == 0.01
    started = time.monotonic()
    with pytest.raises(TimedOut):
        bounded(60)
    assert time.monotonic() - started < 5
    assert bounded(0.01) == 0.01
    bounded.close()


def test_calls_share_a_process_until_it_is_closed():
    bounded = Bounded(whose, 5)
    first = bounded()
    assert first == bounded() != os.getpid()
    bounded.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert bounded() != first
    bounded.close()


def test_what_the_function_raises_and_a_process_that_dies_are_errors():
    bounded = Bounded(lambda kill: os.kill(os.getpid(), signal.SIGKILL) if kill else 1 // 0, 5)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        bounded(False)
    with pytest.raises(RuntimeError, match="has died"):
        bounded(True)
    bounded.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_call_that_hangs(number):
    bounded = Bounded(slow, 60)
    started = time.monotonic()
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    with interruption.current(), pytest.raises(interruption.Interrupted, match=number.name):
        bounded(60)
    assert time.monotonic() - started < 10
    assert bounded._process is None


def test_a_forked_child_gets_the_default_handlers():
    with interruption.current():
        child = os.fork()
        if child == 0:
            handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
            os._exit(0 if handlers == [signal.SIG_DFL] * 3 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)


ORPHANED = """
import os, signal, sys, time
from osora_bench.evaluation.reading.bounded import Bounded

def hang():
    print(os.getpid(), flush=True)
    while True:
        pass

Bounded(hang, 60)()
"""


def test_a_killed_process_leaves_no_orphan():
    parent = subprocess.Popen([sys.executable, "-c", ORPHANED], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    last = time.monotonic() + 10
    while time.monotonic() < last:
        try:
            with open(f"/proc/{child}/stat", encoding="utf-8") as file:  # noqa: PTH123
                if file.read().rpartition(")")[2].split()[0] == "Z":  # dead; nobody to reap it
                    return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


def test_a_question_on_which_the_solver_hangs_has_no_verdict(monkeypatch):
    from osora_bench.evaluation.reading import solver

    monkeypatch.setattr(solver._solver, "seconds", 2)
    told = solver.verify_with_timeout(TOWER, "3")
    assert told == {"error": True, "msg": "no verdict: not within 10 s"}
    assert solver.equal(TOWER[7:-1], "3") is None
    assert solver.verify_with_timeout(r"\boxed{\frac{1}{2}}", "0.5")["answer_correct"] == 1
    assert solver.unparsable(["3", "", "\\frac{1}{2}"]) == [1]
    solver.close()
