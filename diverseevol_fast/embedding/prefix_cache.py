"""The keys and values of a prefix from which many batches continue."""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class PrefixCache(DynamicCache):
    """One pass over the prefix fills it; then it is frozen, and keeps nothing of the batches that follow.

    A copy of an ordinary cache for every batch would work too, but would hold all layers' keys and values of the whole
    batch: half a megabyte a token for a 7B model. Here one layer's are in memory at a time, and no batch sees those of
    another.
    """

    frozen = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the prefix before keys and values [B, H, T, d] of layer `layer_idx`: [B, H, P + T, d] of both.

        P is shorter for a sliding-window layer, which keeps only the last tokens of the prefix.
        """
        if not self.frozen:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer: Any = self.layers[layer_idx]  # is_plain has made sure that it has keys and values
        return _append(layer.keys, key_states), _append(layer.values, value_states)

    def is_plain(self) -> bool:
        """Whether every layer keeps nothing but keys and values, so that no method but update changes them."""
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.layers)

    def is_filled(self) -> bool:
        """Whether the model put keys and values into every layer."""
        return all(getattr(layer, "is_initialized", False) for layer in self.layers)


def _append(prefix: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """[1, H, P, d] before each row of [B, H, T, d]: [B, H, P + T, d]."""
    return torch.cat([prefix.expand(len(states), -1, -1, -1), states], dim=2)
