"""Work in child processes: a crash, a hang or nonsense costs the unit that it happens in, and nothing else."""

import sys
import time
from pathlib import Path

import pytest

from diverseevol_fast.ops import isolated
from diverseevol_fast.ops.isolated import Failure, run_isolated

CHILD = """
import os, signal, sys, time
sys.path.insert(0, {folder!r})  # the module alone: the package imports torch
from isolated import serve

def work(unit):
    yield {"unit": unit}
    kind = unit.split("-")[0]
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        print("so it goes", file=sys.stderr)
        os._exit(7)
    if kind == "hang":
        time.sleep(60)
    if kind == "raise":
        raise RuntimeError("an illegal access\\nsecond line")
    if kind == "chatter":
        print("libraries print, too", flush=True)
        os.write(1, b"and C code\\n")
    if kind == "nonsense":
        for number in range(3, 20):
            try:
                os.write(number, b"!!\\n")
            except OSError:
                pass
    yield {"second": unit}

serve(sys.argv[1:], work)
"""


@pytest.fixture
def child(tmp_path):
    path = tmp_path / "child.py"
    path.write_text(CHILD.replace("{folder!r}", repr(str(Path(isolated.__file__).parent))))
    return lambda units: [sys.executable, str(path), *units]


def done(unit: str) -> list:
    return [(unit, {"unit": unit}), (unit, {"second": unit})]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("crash", "the process ended with SIGSEGV"),
        ("exit", "the process ended with exit status 7: so it goes"),
        ("hang", "no answer within 2 s"),
        ("raise", "the process ended with exit status 1: RuntimeError: an illegal access"),
        ("nonsense", "printed '!!' where a result was expected"),
    ],
)
def test_a_unit_that_fails_costs_itself_alone(child, bad, reason):
    units = ["one", f"{bad}-1", "two", f"{bad}-2", "three"]
    found = list(run_isolated(units, child, unit_seconds=2.0))
    failed = [[(f"{bad}-{i}", {"unit": f"{bad}-{i}"}), (f"{bad}-{i}", Failure(reason))] for i in (1, 2)]
    assert found == [*done("one"), *failed[0], *done("two"), *failed[1], *done("three")]


def test_what_libraries_print_is_no_answer(child):
    assert list(run_isolated(["chatter"], child, unit_seconds=20.0)) == done("chatter")


def test_a_child_that_never_starts_says_nothing_about_the_units():
    def command(units):
        return [sys.executable, "-c", "raise SystemExit('no such device')"]

    expected = Failure("the process ended with exit status 1: no such device", started=False)
    assert list(run_isolated(["a", "b"], command, unit_seconds=20.0)) == [("a", expected), ("b", expected)]
    found = list(run_isolated(["a"], lambda units: ["/no/such/program"], unit_seconds=1.0))
    assert not found[0][1].started
    assert "no process could be started" in found[0][1].reason
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    (found,) = run_isolated(["a"], lambda units: slow, unit_seconds=9.0, start_seconds=1.0)
    assert found == ("a", Failure("no answer within 1 s", started=False))


def test_what_a_child_has_started_ends_with_it(tmp_path):
    """Such as a compiler that runs on in the process group of a hung child."""
    note = tmp_path / "pid"
    code = (
        "import subprocess, time; p = subprocess.Popen(['sleep', '60']);"
        f"open({str(note)!r}, 'w').write(str(p.pid));"
        'print(\'{"start": "a"}\', flush=True); time.sleep(60)'
    )
    (found,) = run_isolated(["a"], lambda units: [sys.executable, "-c", code], unit_seconds=1.0)
    assert found == ("a", Failure("no answer within 1 s"))
    state = Path(f"/proc/{note.read_text()}/stat")
    for _ in range(50):
        if not state.exists() or state.read_text().split(") ")[1].startswith("Z"):
            return
        time.sleep(0.1)
    pytest.fail("the child's own child lives on")


def test_a_reader_that_stops_early_leaves_no_child(child):
    results = run_isolated(["one", "hang"], child, unit_seconds=30.0)
    next(results)
    began = time.perf_counter()
    results.close()
    assert time.perf_counter() - began < 5
