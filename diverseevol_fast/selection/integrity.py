"""What a stream's candidates were when they came: a store that changed since would be selected from with old bounds."""

import torch

from .._common import distributed

INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
CACHED_ELEMENTS = 1 << 18  # so many are gone over several times in a CPU's caches
NOT_HERE = torch.iinfo(torch.int64).max  # of a candidate that has not come, or came to another process


class CandidateError(ValueError):
    """Something is wrong with the values of `candidate`."""

    def __init__(self, message: str, candidate: int):
        super().__init__(message)
        self.candidate = candidate


class Arrived:
    """A checksum for each of n candidates, of the values that it came with."""

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device):
        """dtype: the store's; device: where the work is done."""
        self.dtype = dtype
        self.sums = torch.full((n,), NOT_HERE, dtype=torch.int64, device=device)  # [n]

    def keep(self, places: torch.Tensor, values: torch.Tensor) -> None:
        """These candidates, int64 [B], came with values [B, D] in the store's dtype; both on the device."""
        self.sums.index_copy_(0, places, checksums(values))

    def share(self) -> None:
        """Every process knows the checksums of all candidates from now on."""
        distributed.lowest(self.sums)

    def changed(self, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Which of these candidates, int64 [B], no longer have the values they came with: bool [B].

        values: [B, D] float32 or the store's dtype, what the store holds now, on the device.
        """
        return checksums(values.to(self.dtype)) != self.sums[places]

    def check(self, store: torch.Tensor) -> None:
        """
        Raises:
            CandidateError: for the first candidate whose values in the store [n, D] are not those it came with.
        """
        rows = max(1, CACHED_ELEMENTS // store.shape[1])
        for start in range(0, len(store), rows):
            known = self.sums[start : start + rows].to(store.device)
            changed = (checksums(store[start : start + rows]) != known) & (known != NOT_HERE)
            if changed.any():
                place = start + int(changed.nonzero()[0])
                raise values_changed(place, store[place])


def values_changed(place: int, now: torch.Tensor) -> CandidateError:
    """What to say of a candidate whose values in the store, now [D], are not those it came with."""
    finite = "" if torch.isfinite(now).all() else ", and it holds a value that is not finite now"
    return CandidateError(
        f"store: values changed since they were pushed: those of row {place}{finite}. Change values before they are "
        "pushed, or select among the changed ones with kcenter(values, k, centers)",
        place,
    )


def checksums(values: torch.Tensor) -> torch.Tensor:
    """The sum of the bits of each row of values [R, D], which no order of additions changes: int64 [R].

    The sign of a zero is left out: a sum over several processes may turn it.
    """
    width = values.shape[1] * values.element_size()
    integers = next(dtype for size, dtype in INTEGERS.items() if width % size == 0)
    cached = max(1, CACHED_ELEMENTS // values.shape[1]) if values.device.type == "cpu" else max(1, len(values))
    parts = [(part + 0.0).contiguous().view(integers).sum(dim=1) for part in values.split(cached)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
