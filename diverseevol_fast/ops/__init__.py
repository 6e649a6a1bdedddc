"""The ops: docstring and checks in one public function each, work in `reference`, `native` or `triton_ops`."""

from .block import pick_block
from .logits import LogitStats, logit_stats
from .pooling import masked_mean_pool, pool_min_sqdist
from .screening import min_sqdist
from .streaming import update_argmax

__all__ = [
    "LogitStats",
    "logit_stats",
    "masked_mean_pool",
    "min_sqdist",
    "pick_block",
    "pool_min_sqdist",
    "update_argmax",
]
