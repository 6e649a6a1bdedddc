"""Progress of anything that takes more than a second: a bar on a terminal, a few log lines elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger("diverseevol_fast")

PARTS = 3  # a stage logs a line after each part but the last
SHORTEST_WAIT, LONGEST_WAIT = 10.0, 600.0  # seconds between two log lines


class Progress:
    """Counts `total` units of work: `with Progress("embed", n, "row") as bar: bar.update(3)`.

    It shows nothing when the package's logger is above INFO. On a terminal it is a bar, which appears after a second
    and stays. Elsewhere it logs PARTS - 1 lines, unless they would be less than SHORTEST_WAIT apart, and one whenever
    LONGEST_WAIT has passed.
    """

    def __init__(self, label: str, total: int, unit: str, shown: bool = True):
        self.label, self.total, self.unit = label, total, unit
        self.done = self.part = 0
        self.began = self.last_line = time.perf_counter()
        shown = shown and log.isEnabledFor(logging.INFO)
        self.lines = shown and not sys.stderr.isatty()
        hidden = not shown or self.lines
        self.bar = tqdm(
            total=total, desc=label, unit=unit, unit_scale=total > 9999, dynamic_ncols=True, delay=1.0, disable=hidden
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        """End the bar."""
        self.bar.close()

    def update(self, count: int, **facts: float) -> None:
        """Count `count` more units; `facts` are shown beside the rate."""
        self.done += count
        if facts:
            self.bar.set_postfix(facts, refresh=False)
        self.bar.update(count)
        now = time.perf_counter()
        part = PARTS * self.done // max(self.total, 1)
        waited = now - self.last_line
        new_part = self.part < part < PARTS and waited >= SHORTEST_WAIT
        if self.lines and (new_part or waited >= LONGEST_WAIT):
            self.last_line, self.part = now, part
            self._line(now - self.began, facts)

    def _line(self, seconds: float, facts: dict[str, float]) -> None:
        rate = self.done / seconds
        remaining = (self.total - self.done) / rate if rate else float("inf")
        shown = "".join(f", {name} {value:.4g}" for name, value in facts.items())
        done = f"{self.done:,} of {self.total:,} {self.unit}s"
        log.info("%s: %s, about %.0f s left%s", self.label, done, remaining, shown)
