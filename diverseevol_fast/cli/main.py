"""The command line: it parses, calls the command, and turns a failure into one sentence."""

import argparse
import errno
import json
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

from .._common.errors import InputError, RunError
from .._common.messages import printable, shown
from .parser import COMMANDS, Parser, build_parser
from .result import Result

log = logging.getLogger("diverseevol_fast")

SECONDS_OF_FINALIZER = 0.02  # a signal that arrives during a __del__ is sent again after this time
FIRST = os.environ.get("RANK", "0") == "0"  # whether this is torchrun's first process, which alone informs the user
OF_A_JOB = ("run", "embed", "select")  # the commands that torchrun may start
REFUSED_NAMES = {errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
REFUSED_NAMES |= {errno.EACCES, errno.EPERM, errno.EROFS}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a mistake of the user, 1 for another failure, 128 + a signal."""
    _leave_cores_to_others()
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    _set_up_logging(args.quiet)
    try:
        _check_not_empty(args)
        with _signals_as_exceptions(), _without_warnings(args.quiet):
            result = _command(args, rest)
        if FIRST:
            print(json.dumps(result.record, indent=1) if args.json else result.text)
        return 0
    except (KeyboardInterrupt, TerminatedError) as error:
        _complain(f"{str(error) or 'stopped'}; what is finished is kept, the same command goes on from there")
        return 130 if isinstance(error, KeyboardInterrupt) else 143
    except Exception as error:
        if args.debug:
            raise
        _complain(as_options(_sentence(error), parser.command(args.command)))
        return 2 if isinstance(error, InputError) or _is_refused(error) else 1


def _check_not_empty(args: argparse.Namespace) -> None:
    """
    Raises:
        InputError: an option whose value is empty.
    """
    for name, value in vars(args).items():
        if value == "":
            raise InputError(f"--{name.replace('_', '-')}: expected a value, got ''")


def _command(args: argparse.Namespace, rest: list[str]) -> Result:
    args.keys = rest  # keys of `run`; empty for all other commands
    execute = COMMANDS[args.command].execute
    if args.command not in OF_A_JOB:
        return execute(args)
    from .._common import distributed

    with distributed.job():
        return execute(args)


class TerminatedError(BaseException):
    """The process received SIGTERM."""


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Raise exceptions on SIGINT and SIGTERM (torchrun's, when a process has ended), so that batches are recorded."""

    def stop(number, frame) -> None:
        if _in_finalizer(frame):
            again = (threading.main_thread().ident, number)
            threading.Timer(SECONDS_OF_FINALIZER, signal.pthread_kill, again).start()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            others = ", as when another process of the job has ended" if "WORLD_SIZE" in os.environ else ""
            raise TerminatedError(f"stopped by SIGTERM{others}")

    handled = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_finalizer(frame: FrameType | None) -> bool:
    """Whether a signal interrupted a __del__, in which Python prints and drops exceptions."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _complain(sentence: str) -> None:
    rank = os.environ.get("RANK")
    print(f"diverseevol{f' (process {rank})' if rank else ''}: {printable(sentence)}", file=sys.stderr)


class LinesAboveBars(logging.StreamHandler):
    """Writes log lines without damaging a progress bar on the same terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line in place of the bar, and the bar below it."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextmanager
def _without_warnings(quiet: bool) -> Iterator[None]:
    """With --quiet, hide other packages' warnings: Python's, and those that are logged without a handler."""
    handler = logging.lastResort or logging.StreamHandler()
    level = handler.level
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
            handler.setLevel(logging.ERROR)
        try:
            yield
        finally:
            handler.setLevel(level)


class PrintableFormatter(logging.Formatter):
    """Escapes control characters, so that data cannot send commands to the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line with control characters escaped."""
        return printable(super().format(record))


def _leave_cores_to_others() -> None:
    """Let gcc's OpenMP threads spin only briefly while they wait, since other processes may need the cores.

    It must run before torch is imported. A policy that the user has set stays; docs/decisions.md has the measurements.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _set_up_logging(quiet: bool) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' too; this package shows its own
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if quiet:  # these packages read the variables when they are imported
        for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
            os.environ.setdefault(name, "error")
    handler = LinesAboveBars(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.ERROR if not FIRST else logging.WARNING if quiet else logging.INFO)


def as_options(text: str, command: Parser) -> str:
    """A function's message with the command's options in place of the function's keywords.

    "overwrite=True" becomes "--overwrite", and "output: expected ..." "--output: expected ..."; a key of run's config,
    such as "skip_empty=True", becomes "--skip_empty true".
    """
    for action in command._actions:
        if not action.option_strings:
            continue
        option = action.option_strings[-1]
        if action.nargs == 0:
            text = re.sub(rf"\b{action.dest}={action.const}\b", option, text)
        text = re.sub(rf"^{action.dest}(?=[: ])", option, text)
    return re.sub(r"\b(\w+)=True\b", r"--\1 true", text) if command.takes_keys else text


def _is_refused(error: BaseException) -> bool:
    """Whether the system refuses a file name of the user's."""
    return isinstance(error, OSError) and error.errno in REFUSED_NAMES and error.filename is not None


def _sentence(error: BaseException) -> str:
    """One sentence that says what went wrong and what to do."""
    if isinstance(error, InputError | RunError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        name = f" while writing {error.filename}" if error.filename else ""
        return f"{error.strerror}{name}: what is finished is kept; make room and give the same command again"
    if isinstance(error, OSError) and _is_refused(error):
        return f"{shown(error.filename, 200)}: {error.strerror}"
    if "WORLD_SIZE" in os.environ and any(word in str(error) for word in ("gloo", "NCCL", "closed by peer")):
        return "another process of this job has ended; what is finished is kept, the same command goes on from there"
    detail = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {detail} (--debug shows where; finished stages are kept)"
