"""Several processes on one job, as torchrun starts them: who they are, and the little that they tell each other.

Rows are shared out by batch, and each process bounds the rows that it embeds; then one exchange of all rows' bounds
lets every process pick the same rows, without a word for each pick.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from .errors import InputError

LONGEST_WAIT = timedelta(hours=12)  # for the others, who may be training or writing; one that dies is noticed at once


def rank() -> int:
    """This process's number, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share the job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


@contextmanager
def job() -> Iterator[None]:
    """Join the other processes, if there are any and it is not done yet; leave them at the end.

    Raises:
        InputError: they are on several machines, whose views of one file differ while it is written.
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
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    yield  # not in a try: after a failure the others are no longer there to take leave of
    # One that leaves early would break the connections of the others. And gloo's threads, which DDP keeps alive after
    # the group, let go of the last operation's tensors some time after it: where the interpreter ends before, that
    # aborts the process. Unlike all_reduce, this barrier has none.
    dist.barrier()
    dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
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


@contextmanager
def first_then_others() -> Iterator[None]:
    """The block runs in the first process, then in the others, which find what it made."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()
