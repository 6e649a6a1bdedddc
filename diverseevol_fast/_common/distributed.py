"""The processes of one job, as torchrun starts them: their ranks, barriers and reductions.

Processes share the rows by batch, and each computes the bounds of the rows that it embeds. After one reduction of all
bounds every process picks the same rows, without further messages.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from .errors import InputError

LONGEST_WAIT = timedelta(hours=12)  # for a process that trains or writes; the death of one ends the wait at once


def rank() -> int:
    """This process's rank in the job, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share the job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


@contextmanager
def job() -> Iterator[None]:
    """Join torchrun's other processes, if there are any and no process group exists; leave them at the end.

    Raises:
        InputError: they are on several machines, which see one file differently while it is written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        raise InputError("torchrun: expected all processes on one machine (--nnodes 1): they write one file")
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    # Imported later, by DDP, its functions would have this group as a default argument, and nothing could end it.
    from torch.distributed.nn import functional  # noqa: F401

    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    yield  # no try/finally: after a failure the peers are gone and the barrier would hang
    dist.barrier()  # a process that leaves early would break its peers' connections
    dist.destroy_process_group()
    # gloo's threads free the tensors of reductions late; if the interpreter has ended by then, the process aborts. They
    # end with the last reference to the group, and the cycles of DDP's modules hold some.
    gc.collect()


def barrier() -> None:
    """Wait until every process has called this."""
    if world() > 1:
        dist.all_reduce(torch.zeros(1))


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def lowest(values: torch.Tensor) -> torch.Tensor:
    """The minimum over all processes, in place."""
    if world() > 1:
        dist.all_reduce(values, dist.ReduceOp.MIN)
    return values


def indices_of_first(indices: np.ndarray | None) -> np.ndarray | None:
    """The first process's indices, int64 [B], or its None, in every process; those of the others do not count."""
    if world() == 1:
        return indices
    count = torch.tensor([-1 if indices is None else len(indices)])
    dist.broadcast(count, 0)
    if int(count) < 0:
        return None
    values = torch.zeros(int(count), dtype=torch.int64)
    if is_first():
        values.copy_(torch.from_numpy(indices))
    dist.broadcast(values, 0)
    return values.numpy()


@contextmanager
def first_then_others() -> Iterator[None]:
    """Run the block in the first process, then in the others, which find the files that the first one wrote."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()
