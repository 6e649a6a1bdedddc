"""The keys and values of a prefix that many batches go on from."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class PrefixCache(DynamicCache):
    """Filled by one pass over the prefix, then frozen: a batch's own keys and values follow it and are not kept.

    A copy repeated for every batch would do the same, and grow by all layers' keys and values of the whole batch:
    for a 7B model half a megabyte a token. Here only one layer's are there at a time, and no batch sees another's.
    """

    frozen = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, H, T, d] of layer `layer_idx` -> those [B, H, P + T, d] with the prefix before them.

        A sliding-window layer gives as much of the prefix as its window reaches back to.
        """
        if not self.frozen:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        return _after(layer.keys, key_states), _after(layer.values, value_states)

    def is_plain(self) -> bool:
        """Whether every layer is to keep nothing but keys and values, so that update is all there is to it."""
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.layers)

    def is_filled(self) -> bool:
        """Whether the model put keys and values into every layer."""
        return all(layer.is_initialized for layer in self.layers)


def _after(first: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
    """[1, H, P, d] in each of the batch, and [B, H, T, d] -> [B, H, P + T, d]."""
    return torch.cat([first.expand(len(then), -1, -1, -1), then], dim=2)
