"""Progress of anything that takes more than a second: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger("diverseevol_fast")

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts `total` units of work: `with Progress("embed", n, "row") as bar: bar.update(3)`.

    Silent when the package's logger is above INFO. Not on a terminal, a line is logged every ten seconds.
    """

    def __init__(self, label: str, total: int, unit: str, shown: bool = True):
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.began = self.last_line = time.perf_counter()
        shown = shown and log.isEnabledFor(logging.INFO)
        self.lines = shown and not sys.stderr.isatty()
        self.bar = tqdm(
            total=total, desc=label, unit=unit, unit_scale=total > 9999, leave=False,
            dynamic_ncols=True, disable=not shown or self.lines, delay=1.0,
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()

    def update(self, count: int, **facts: float) -> None:
        """Count `count` more units; `facts` are shown beside the rate."""
        self.done += count
        if facts:
            self.bar.set_postfix(facts, refresh=False)
        self.bar.update(count)
        now = time.perf_counter()
        if self.lines and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            self._line(now - self.began, facts)

    def _line(self, seconds: float, facts: dict[str, float]) -> None:
        rate = self.done / seconds
        left = (self.total - self.done) / rate if rate else float("inf")
        shown = "".join(f", {name} {value:.4g}" for name, value in facts.items())
        log.info("%s: %d/%d %s, %.1f %s/s, %.0f s left%s",
                 self.label, self.done, self.total, self.unit, rate, self.unit, left, shown)  # fmt: skip
