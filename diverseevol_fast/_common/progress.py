"""Progress of anything that takes more than a second: a bar on a terminal, a few plain lines elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger("diverseevol_fast")

LINES = 3  # one less is said of a stage, each when another third is done: a run has many stages
SHORTEST_WAIT, LONGEST_WAIT = 10.0, 600.0  # seconds between two lines


class Progress:
    """Counts `total` units of work: `with Progress("embed", n, "row") as bar: bar.update(3)`.

    Silent when the package's logger is above INFO. On a terminal a bar, which stays as one line when it is through, if
    that took more than a second. Elsewhere at most two lines, ten seconds apart or more, and one every ten minutes.
    """

    def __init__(self, label: str, total: int, unit: str, shown: bool = True):
        self.label, self.total, self.unit = label, total, unit
        self.done = self.part = 0
        self.began = self.last_line = time.perf_counter()
        shown = shown and log.isEnabledFor(logging.INFO)
        self.lines = shown and not sys.stderr.isatty()
        self.bar = tqdm(
            total=total, desc=label, unit=unit, unit_scale=total > 9999, leave=True,
            dynamic_ncols=True, disable=not shown or self.lines, delay=1.0,
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        """The stage is over."""
        self.bar.close()

    def update(self, count: int, **facts: float) -> None:
        """Count `count` more units; `facts` are shown beside the rate."""
        self.done += count
        if facts:
            self.bar.set_postfix(facts, refresh=False)
        self.bar.update(count)
        now = time.perf_counter()
        part = LINES * self.done // max(self.total, 1)
        waited = now - self.last_line
        new_part = self.part < part < LINES and waited >= SHORTEST_WAIT
        if self.lines and (new_part or waited >= LONGEST_WAIT):
            self.last_line, self.part = now, part
            self._line(now - self.began, facts)

    def _line(self, seconds: float, facts: dict[str, float]) -> None:
        rate = self.done / seconds
        left = (self.total - self.done) / rate if rate else float("inf")
        shown = "".join(f", {name} {value:.4g}" for name, value in facts.items())
        log.info("%s: %s of %s %ss, about %.0f s left%s",
                 self.label, f"{self.done:,}", f"{self.total:,}", self.unit, left, shown)  # fmt: skip
