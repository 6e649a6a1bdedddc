"""Work that may crash or hang, done in a child process: a crash or a hang costs only the unit that it happened in.

The parent calls `run_isolated`, the child it starts calls `serve`. Between them, on the child's standard output, a JSON
object a line: {"start": unit}, any number of {"result": ...}, {"end": unit}.
"""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

EXCEPTION = re.compile(r"[\w.]*Error: ")  # the line of a traceback that names the error
EXIT_SECONDS = 10.0  # a child that has finished its units has so long to end


@dataclass(frozen=True)
class Failure:
    """The reason why a unit gave no result, or no further one."""

    reason: str
    started: bool = True  # False: the child never started the unit, and the failure says nothing about it


def run_isolated(
    units: Sequence[str],
    command: Callable[[Sequence[str]], list[str]],
    *,
    unit_seconds: float,
    start_seconds: float = 120.0,
    environment: dict[str, str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yield (unit, result) for each result of each unit, and (unit, Failure) where one failed; in order.

    A child works through the units. When it crashes, hangs or prints nonsense, its present unit has failed, and a new
    child goes on with the next one.

    Args:
        units: their names.
        command: gives the command of a child that works through some units.
        unit_seconds: the child of a unit that sends nothing for so long is killed.
        start_seconds: the same for the time until the child starts its first unit.
        environment: that of the child; None: that of this process.
    """
    remaining = list(units)
    while remaining:
        with tempfile.TemporaryFile() as errors:
            try:
                child = subprocess.Popen(
                    command(remaining),
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    stdin=subprocess.DEVNULL,
                    text=True,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                yield from (
                    (unit, Failure(f"no process could be started: {error}", started=False)) for unit in remaining
                )
                return
            conversation = _Conversation(child, errors, unit_seconds)
            try:
                started = conversation.wait_for_start(start_seconds)
                if started is not None:
                    yield from ((unit, Failure(started, started=False)) for unit in remaining)
                    return
                while remaining:
                    unit = remaining.pop(0)
                    yield from ((unit, result) for result in conversation.results(unit))
                    if conversation.over:
                        break
            finally:
                conversation.close(finished=not remaining)


class _Conversation:
    """The messages of one child."""

    def __init__(self, child: subprocess.Popen, errors: Any, seconds: float):
        self.child, self.errors, self.seconds = child, errors, seconds
        self.over = False  # whether the child is of no further use
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.pending: dict | None = None  # a message that was read ahead
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for_start(self, seconds: float) -> str | None:
        """None once the child starts a unit, or why it did not."""
        message = self._next(seconds)
        if isinstance(message, str):
            return message
        self.pending = message
        return None

    def results(self, unit: str) -> Iterator[Any]:
        """A unit's results, and a Failure if it failed."""
        message, self.pending = self.pending or self._next(self.seconds), None
        if message != {"start": unit}:
            yield self._failed(message)
            return
        while True:
            message = self._next(self.seconds)
            if isinstance(message, dict) and "result" in message:
                yield message["result"]
            elif message == {"end": unit}:
                return
            else:
                yield self._failed(message)
                return

    def _failed(self, message: dict | str) -> Failure:
        self.over = True
        if isinstance(message, str):
            return Failure(message)
        return Failure(f"sent {json.dumps(message)} out of turn")

    def _next(self, seconds: float) -> dict | str:
        """The next message, or why there is none."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return f"no answer within {seconds:.0f} s"
        if line is None:
            return self._ending()
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            message = None
        return message if isinstance(message, dict) else f"printed {line.strip()[:80]!r} where a result was expected"

    def _ending(self) -> str:
        try:
            status = self.child.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return "the process closed its output and went on"
        self.errors.seek(0)
        printed = [line for line in self.errors.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"exit status {status}" if status >= 0 else _signal_name(-status)
        error = next((line for line in reversed(printed) if EXCEPTION.match(line)), printed[-1] if printed else "")
        return f"the process ended with {how}" + (f": {error.strip()[:200]}" if error else "")

    def _read(self) -> None:
        for line in self.child.stdout or ():
            self.lines.put(line)
        self.lines.put(None)

    def close(self, *, finished: bool) -> None:
        """End the child; one that has finished its units has time to end by itself."""
        if finished and not self.over:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(EXIT_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # processes that it started are in its group
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def serve(units: Iterable[str], work: Callable[[str], Iterable[Any]]) -> None:
    """In the child: do the units and send the results of `work(unit)`.

    An exception ends the child, since on a GPU no later result could be trusted; the parent gives its last line on
    standard error as the reason. Whatever libraries print to standard output goes to standard error.
    """
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as parent:
        os.dup2(2, 1)
        for unit in units:
            _send(parent, {"start": unit})
            for result in work(unit):
                _send(parent, {"result": result})
            _send(parent, {"end": unit})


def _send(parent: TextIO, message: dict) -> None:
    parent.write(json.dumps(message) + "\n")
    parent.flush()
