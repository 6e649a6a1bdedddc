"""How many tokens a batch may hold: found by a probe, halved when memory runs out."""

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

log = logging.getLogger("diverseevol_fast")

CPU_TOKENS = 2048  # more leave the caches: 2,570 tokens/s at 2,048, 2,060 at 8,192 (8 layers, D=512)
FIRST_PROBE = 4096
GPU_TOKENS = 65_536  # more than a GPU needs to be busy
SHARE_OF_MEMORY = 0.8

Result = TypeVar("Result")


def find_budget(longest: int, device: torch.device, probe: Callable[[int, int], object]) -> int:
    """Tokens for a batch, padding included, at least one row of `longest` tokens.

    On a GPU batches of 4,096, 8,192, ... tokens are run by probe(rows, tokens in each) for as long as twice the memory
    that the last one took is free.
    """
    if device.type != "cuda":
        return max(CPU_TOKENS, longest)
    found = longest
    tokens = FIRST_PROBE
    while tokens <= GPU_TOKENS:
        if tokens >= longest:
            peak = _peak(device, lambda tokens=tokens: probe(tokens // longest, longest))
            if peak is None:
                break
            found = tokens
            if 2 * peak > SHARE_OF_MEMORY * _free(device):
                break
        tokens *= 2
    log.info("batches of up to %d tokens", found)
    return found


def _peak(device: torch.device, work: Callable[[], object]) -> int | None:
    """How many bytes the work took at most beyond what was there before; None when there were not enough."""
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
    """Bytes that torch could have on this device, more than it uses now."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class TokenBudget:
    """The tokens that a batch may hold now; what is larger is run in parts."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def run(self, rows: np.ndarray, lengths: np.ndarray, work: Callable[[np.ndarray], Result]) -> list[Result]:
        """work(part) for all rows [B], in as many parts as it takes; out of memory halves the limit.

        Raises:
            torch.OutOfMemoryError, RuntimeError: a single row is too much.
        """
        todo, results = [rows], []
        of = dict(zip(rows.tolist(), lengths.tolist(), strict=True))
        while todo:
            part = todo.pop()
            size = len(part) * max(of[row] for row in part.tolist())
            if size <= self.tokens or len(part) == 1:
                result, failure = _unless_out_of_memory(lambda part=part: work(part))
                if failure is None:
                    results.append(result)
                    continue
                if len(part) == 1:
                    raise failure
                self.tokens = size // 2
                log.warning("out of memory with a batch of %d tokens: going on with %d", size, self.tokens)
                del failure  # its frames keep tensors alive
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            todo += [part[len(part) // 2 :], part[: len(part) // 2]]
        return results


def _unless_out_of_memory(work: Callable[[], Result]) -> tuple[Result | None, BaseException | None]:
    try:
        return work(), None
    except (torch.OutOfMemoryError, MemoryError) as error:
        return None, error
    except RuntimeError as error:  # of the CPU's allocator, which has no exception of its own
        if "allocate memory" not in str(error):
            raise
        return None, error
