"""How many tokens a batch may hold: a probe measures it, and running out of memory halves it."""

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

log = logging.getLogger("diverseevol_fast")

CPU_TOKENS = 2048  # larger batches do not fit into the caches: 2,570 tokens/s, 2,060 at 8,192 (8 layers, D=512)
FIRST_PROBE = 4096
GPU_TOKENS = 65_536  # this keeps any GPU busy; larger batches are no faster
SHARE_OF_MEMORY = 0.8

Result = TypeVar("Result")


def find_budget(longest: int, device: torch.device, probe: Callable[[int, int], object]) -> int:
    """The tokens of a batch, padding included: at least one row of `longest` tokens.

    On a GPU, probe(rows, tokens of each) runs batches of 4,096, 8,192, ... tokens for as long as twice the memory that
    the last batch took is free.
    """
    if device.type != "cuda":
        return max(CPU_TOKENS, longest)
    budget, tokens = longest, FIRST_PROBE
    while tokens <= GPU_TOKENS:
        if tokens >= longest:
            peak = _peak(device, lambda tokens=tokens: probe(tokens // longest, longest))
            if peak is None:
                break
            budget = tokens
            if 2 * peak > SHARE_OF_MEMORY * _free(device):
                break
        tokens *= 2
    log.info("batches of up to %d tokens", budget)
    return budget


def _peak(device: torch.device, work: Callable[[], object]) -> int | None:
    """The most bytes that the work held at a time beyond those held before; None when memory ran out."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        work()
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()
    return torch.cuda.max_memory_allocated(device) - before


def _free(device: torch.device) -> int:
    """Bytes that torch could still allocate on this device."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class TokenBudget:
    """The tokens that a batch may hold now: larger batches are run in parts."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def run(self, rows: np.ndarray, lengths: np.ndarray, work: Callable[[np.ndarray], Result]) -> list[Result]:
        """The results of work(part) for all rows [B], in their order; running out of memory halves the budget.

        lengths: tokens of each row, int64 [B].

        Raises:
            torch.OutOfMemoryError, MemoryError, RuntimeError: a single row takes more memory than there is.
        """
        parts, results = [(rows, lengths)], []
        while parts:
            part, part_lengths = parts.pop()
            size, half = len(part) * int(part_lengths.max()), len(part) // 2
            if size <= self.tokens or len(part) == 1:
                try:
                    results.append(work(part))
                    continue
                except (RuntimeError, MemoryError) as error:
                    if len(part) == 1 or not _is_out_of_memory(error):
                        raise
                # Here the exception is gone, and with its frames the tensors that they held.
                self.tokens = size // 2
                log.warning("out of memory with a batch of %d tokens: going on with %d", size, self.tokens)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            parts += [(part[half:], part_lengths[half:]), (part[:half], part_lengths[:half])]
        return results


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch's allocator for the CPU raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
