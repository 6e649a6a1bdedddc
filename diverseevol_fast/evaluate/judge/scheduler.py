"""Ask a judge many questions: whom it answers first, when it is given up, and that no reply is lost."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from ..._common.errors import InputError, RunError
from ..._common.messages import shown
from ..._common.progress import Progress
from .endpoint import CallError, Endpoint
from .replies import Key, Reply, ReplyFile

log = logging.getLogger("diverseevol_fast")

FEWEST_FAILURES = 3  # without a reply between them, before the endpoint is given up

Job = tuple[Key, str]  # a question and order, and what to ask


def ask_all(endpoint: Endpoint, left: list[Job], concurrency: int, file: ReplyFile) -> None:
    """Keep a reply for each; when calls fail, all that can come still comes, unless the endpoint is of no use.

    Calls go out one by one until there is a reply: a wrong key, URL or model costs a call or three, and what the judge
    does not take is found out once. From then on `concurrency` are under way. A question that is turned down is that
    question's matter; calls that fail in a row for other reasons are the endpoint's.

    Raises:
        InputError: every further call would fail for what was given: the key, the address.
        RunError: calls failed, some or all; replies that came are kept.
    """
    useless = None
    with Progress("judge", len(left), "call") as bar:
        tally = _Tally(file, bar, max(FEWEST_FAILURES, concurrency))
        try:
            asked = _ask_until_a_reply(endpoint, left, tally)
            _ask_together(endpoint.ask, [job for job in left if job[0] not in asked], concurrency, tally)
        except CallError as error:
            useless = error
    kept = f"{len(file.replies)} replies are kept in {file.path}, the same command asks only for the others"
    if useless:
        raise (InputError if useless.kind == "permanent" else RunError)(f"{useless}; {kept}")
    if tally.failed:
        raise RunError(f"{tally.failed} of {len(left)} calls failed; {kept}")


class _Tally:
    """What has come: replies are kept, failures told and counted."""

    def __init__(self, file: ReplyFile, bar: Progress, most_failures: int):
        self.file, self.bar, self.most_failures = file, bar, most_failures
        self.failed = self.in_a_row = self.tokens = 0

    def take(self, key: Key, outcome: Reply | Exception) -> None:
        """
        Raises:
            CallError: the failure after which the endpoint is given up.
        """
        if isinstance(outcome, Reply):
            self.keep(key, outcome)
            return
        if not isinstance(outcome, CallError):
            raise outcome
        self.failed += 1
        self.in_a_row = 0 if outcome.kind == "refused" else self.in_a_row + 1
        if outcome.kind == "permanent" or self.in_a_row >= self.most_failures:
            raise outcome
        log.warning("judge: question %s, order %d: %s", shown(key[0]), key[1], outcome)

    def keep(self, key: Key, reply: Reply) -> None:
        """Put a reply on the disk."""
        self.file.add(key, reply)
        self.in_a_row = 0
        self.tokens += sum(reply.tokens or ())
        self.bar.update(1, tokens=self.tokens)


def _ask_until_a_reply(endpoint: Endpoint, left: list[Job], tally: _Tally) -> set[Key]:
    """Ask the first, and where it fails one in the middle, and the last: neighbours may fail for what they ask.

    Returns what was asked. Only one call takes all its retries, and none that hangs: it would take minutes for each.

    Raises:
        CallError: of the last, when none was answered.
    """
    asked, ask = set(), endpoint.ask_first
    for place in sorted({0, len(left) // 2, len(left) - 1}):
        key, text = left[place]
        asked.add(key)
        outcome = _outcome(ask, text)
        tally.take(key, outcome)
        if isinstance(outcome, Reply):
            return asked
        if outcome.kind == "busy":
            ask = endpoint.ask_once
    raise outcome


def _ask_together(ask: Callable[[str], Reply], jobs: list[Job], concurrency: int, tally: _Tally) -> None:
    """Ask `concurrency` at a time; another one begins when an outcome has been taken.

    The threads are daemons: a stopped command does not wait for replies that may take minutes. What has come by then is
    kept.
    """
    todo: SimpleQueue[Job | None] = SimpleQueue()
    results: SimpleQueue[tuple[Key, Reply | Exception]] = SimpleQueue()

    def work() -> None:
        while (job := todo.get()) is not None:
            results.put((job[0], _outcome(ask, job[1])))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(jobs)))]
    for thread in threads:
        thread.start()
    try:
        for begun, job in enumerate(jobs):
            if begun >= concurrency:
                tally.take(*results.get())
            todo.put(job)
        for _ in threads:
            tally.take(*results.get())
    finally:
        for _ in threads:
            todo.put(None)
        while not results.empty():
            key, outcome = results.get()
            if isinstance(outcome, Reply):
                tally.keep(key, outcome)


def _outcome(ask: Callable[[str], Reply], text: str) -> Reply | Exception:
    """The reply, or why there is none: raised where it is taken, not in a thread."""
    try:
        return ask(text)
    except Exception as error:  # noqa: BLE001 (whatever it is)
        return error
