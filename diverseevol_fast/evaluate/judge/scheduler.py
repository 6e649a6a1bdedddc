"""The order of the requests to a judge: one until it replies, then several at once; and when to give up."""

import logging
import threading
from queue import Empty, SimpleQueue

from ..._common.errors import InputError, RunError
from ..._common.messages import shown
from ..._common.progress import Progress
from .endpoint import CallError, Endpoint
from .replies import Key, Reply, ReplyFile

log = logging.getLogger("diverseevol_fast")

FEWEST_FAILURES = 3  # in a row, without a reply, before the endpoint is given up
SIGNAL_SECONDS = 0.5  # a signal that comes just before the main thread waits is handled after this time

Job = tuple[Key, str]  # a question and order, and the prompt
Outcome = tuple[Key, Reply | Exception]


def ask_all(endpoint: Endpoint, jobs: list[Job], concurrency: int, file: ReplyFile) -> None:
    """Write a reply to each job into `file`. When requests fail, the others are still sent, unless the endpoint fails.

    Requests are sent one by one until there is a reply: a wrong key, URL or model then costs one to three, and a
    parameter that the judge does not accept is found once. A request that is refused concerns its question alone;
    requests that fail in a row for other reasons concern the endpoint.

    Raises:
        InputError: every further request would fail because of the key or the address.
        RunError: some or all requests failed. Replies that came are in `file`.
    """
    limits = f"a call is given up after {endpoint.retries + 1} tries, a try after {endpoint.timeout:g} s without a byte"
    log.info(
        "judge: %d calls to %s at %s, %d at a time; %s", len(jobs), endpoint.model, endpoint.url, concurrency, limits
    )
    fatal = None
    with Progress("judge", len(jobs), "call") as bar:
        tally = _Tally(file, bar, max(FEWEST_FAILURES, concurrency))
        try:
            asked = _ask_until_a_reply(endpoint, jobs, tally)
            _ask_together(endpoint, [job for job in jobs if job[0] not in asked], concurrency, tally)
        except CallError as error:
            fatal = error
        finally:
            endpoint.close()
    saved = f"{len(file.replies)} replies are kept in {file.path}, judging again asks only for the others"
    if fatal:
        raise (InputError if fatal.kind == "permanent" else RunError)(f"{fatal}; {saved}")
    if tally.failed:
        raise RunError(f"{tally.failed} of {len(jobs)} calls failed; {saved}")


class _Tally:
    """Writes replies, reports and counts failures."""

    def __init__(self, file: ReplyFile, bar: Progress, most_failures: int):
        self.file, self.bar, self.most_failures = file, bar, most_failures
        self.failed = self.in_a_row = self.tokens = 0

    def take(self, key: Key, outcome: Reply | Exception) -> None:
        """
        Raises:
            CallError: the failure after which the endpoint is given up.
        """
        if isinstance(outcome, Reply):
            self.file.add(key, outcome)
            self.in_a_row = 0
            self.tokens += sum(outcome.tokens or ())
            self.bar.update(1, tokens=self.tokens)
            return
        if not isinstance(outcome, CallError):
            raise outcome
        self.failed += 1
        self.in_a_row = 0 if outcome.kind == "refused" else self.in_a_row + 1
        if outcome.kind == "permanent" or self.in_a_row >= self.most_failures:
            raise outcome
        log.warning("judge: question %s, order %d: %s", shown(key[0]), key[1], outcome)


def _ask_until_a_reply(endpoint: Endpoint, jobs: list[Job], tally: _Tally) -> set[Key]:
    """Ask the first, then one in the middle, then the last: neighbors may fail because of their questions.

    Returns the questions asked. At most one request takes all its retries, and none whose tries hang, which would take
    minutes each.

    Raises:
        CallError: of the last, if there was no reply.
    """
    indices, asked, is_busy = sorted({0, len(jobs) // 2, len(jobs) - 1}), set(), False
    for index in indices:
        key, prompt = jobs[index]
        asked.add(key)
        try:
            tally.take(key, endpoint.ask(prompt, retries=0) if is_busy else endpoint.ask_first(prompt))
            break
        except CallError as error:
            tally.take(key, error)
            if index == indices[-1]:
                raise
            is_busy = is_busy or error.kind == "busy"
    return asked


def _ask_together(endpoint: Endpoint, jobs: list[Job], concurrency: int, tally: _Tally) -> None:
    """Send `concurrency` requests at a time; the next one is sent after the outcome of one has been taken.

    The threads are daemons: a command that is stopped does not wait minutes for their replies.
    """
    todo: SimpleQueue[Job | None] = SimpleQueue()
    outcomes: SimpleQueue[Outcome] = SimpleQueue()

    def work() -> None:
        while (job := todo.get()) is not None:
            outcomes.put((job[0], _outcome(endpoint, job[1])))

    count = min(concurrency, len(jobs))
    for _ in range(count):
        threading.Thread(target=work, daemon=True).start()
    try:
        for job in jobs[:count]:
            todo.put(job)
        for index in range(len(jobs)):
            tally.take(*_next(outcomes))
            if index + count < len(jobs):
                todo.put(jobs[index + count])
    finally:
        for _ in range(count):
            todo.put(None)
        while not outcomes.empty():  # replies that came meanwhile are written, too
            key, outcome = outcomes.get()
            if isinstance(outcome, Reply):
                tally.take(key, outcome)


def _outcome(endpoint: Endpoint, prompt: str) -> Reply | Exception:
    try:
        return endpoint.ask(prompt)
    except Exception as error:  # noqa: BLE001 (raised again in the main thread)
        return error


def _next(outcomes: SimpleQueue[Outcome]) -> Outcome:
    """Wait for an outcome, in pieces: a wait without an end could begin just after a signal and not notice it."""
    while True:
        try:
            return outcomes.get(timeout=SIGNAL_SECONDS)
        except Empty:
            pass
