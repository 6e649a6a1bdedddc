"""The ops: one public function each, which checks; `reference`, `native` or `triton_ops` does the work."""

from .logit_stats import LogitStats, logit_stats
from .masked_mean_pool import masked_mean_pool
from .min_sqdist import min_sqdist
from .pick_block import pick_block
from .pool_min_sqdist import pool_min_sqdist
from .update_argmax import update_argmax

__all__ = [
    "LogitStats",
    "logit_stats",
    "masked_mean_pool",
    "min_sqdist",
    "pick_block",
    "pool_min_sqdist",
    "update_argmax",
]
