"""Checksums of the pushed candidates: where the store changes after that, their bounds no longer hold."""

import torch

from .._common import distributed

INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
CACHED_ELEMENTS = 1 << 18  # several passes over so many stay in a CPU's caches
NOT_HERE = torch.iinfo(torch.int64).max  # of a candidate that was not pushed, or was in another process


class CandidateError(ValueError):
    """The values of `candidate` are wrong."""

    def __init__(self, message: str, candidate: int):
        super().__init__(message)
        self.candidate = candidate


class Checksums:
    """A checksum of the pushed values of each of n candidates."""

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device):
        """dtype: that of the store; device: does the work."""
        self.dtype = dtype
        self.sums = torch.full((n,), NOT_HERE, dtype=torch.int64, device=device)  # [n]

    def record(self, indices: torch.Tensor, values: torch.Tensor) -> None:
        """Candidates at `indices`, int64 [B], were pushed with values [B, D] of that dtype; both on the device."""
        self.sums.index_copy_(0, indices, checksums(values))

    def share(self) -> None:
        """Give every process the checksums of all candidates."""
        distributed.lowest(self.sums)

    def changed(self, indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Which of the candidates at `indices`, int64 [B], no longer have their pushed values: bool [B].

        values: [B, D] float32 or the store's dtype, the present values in the store, on the device.
        """
        return checksums(values.to(self.dtype)) != self.sums[indices]

    def check(self, store: torch.Tensor) -> None:
        """
        Raises:
            CandidateError: for the first candidate whose values in the store [n, D] are not the pushed ones.
        """
        rows = max(1, CACHED_ELEMENTS // store.shape[1])
        for start in range(0, len(store), rows):
            known = self.sums[start : start + rows].to(store.device)
            changed = (checksums(store[start : start + rows]) != known) & (known != NOT_HERE)
            if changed.any():
                index = start + int(changed.nonzero()[0])
                raise values_changed(index, store[index])


def values_changed(index: int, present: torch.Tensor) -> CandidateError:
    """The error about a candidate whose present values in the store, [D], are not the pushed ones."""
    finite = "" if torch.isfinite(present).all() else ", and it holds a value that is not finite now"
    return CandidateError(
        f"store: values changed since they were pushed: those of row {index}{finite}. Change values before they are "
        "pushed, or select among the changed ones with kcenter(values, k, centers)",
        index,
    )


def checksums(values: torch.Tensor) -> torch.Tensor:
    """The sum of the bits of each row of values [R, D], which no order of additions changes: int64 [R].

    The sign of a zero does not count: a sum over several processes may turn it.
    """
    width = values.shape[1] * values.element_size()
    integers = next(dtype for size, dtype in INTEGERS.items() if width % size == 0)
    cached = max(1, CACHED_ELEMENTS // values.shape[1]) if values.device.type == "cpu" else max(1, len(values))
    parts = [(part + 0.0).contiguous().view(integers).sum(dim=1) for part in values.split(cached)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
