"""The ops: docstring and checks in one public function each, work in `reference`, `native` or `triton_ops`."""

from .pooling import masked_mean_pool

__all__ = ["masked_mean_pool"]
