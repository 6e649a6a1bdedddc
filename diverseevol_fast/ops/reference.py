"""The specification of every op: plain torch in float64. Slow is fine, unclear is not.

Imports torch alone. Every backend is tested against this file, selections index by index.
"""

import torch

CHUNK_ELEMENTS = 1 << 22  # rows are taken in chunks of about this many elements, so that x is never copied whole


def masked_mean_pool(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None = None,
    prefix_sum: torch.Tensor | None = None,
    prefix_len: int = 0,
) -> torch.Tensor:
    """Mean over each row's tokens and a prefix that all rows begin with -> [B, D] float32.

    Padded: hidden [B, T, D], mask [B, T] bool; masked positions may hold anything, NaN included. Packed: hidden
    [total, D], cu_seqlens [B + 1] int64. prefix_sum [D]: the sum of prefix_len tokens' states.

    Raises:
        ValueError: a row has nothing to pool.
    """
    if mask is not None:
        counts = mask.sum(dim=1)  # [B]
        sums = torch.where(mask[:, :, None], hidden.to(torch.float64), 0.0).sum(dim=1)  # [B, D]
    else:
        assert cu_seqlens is not None
        counts = cu_seqlens.diff()  # [B]
        lengths = counts.tolist()
        sums = torch.stack(
            [row.to(torch.float64).sum(dim=0) for row in hidden[: sum(lengths)].split(lengths)]
        )  # [B, D]
    empty = (counts + prefix_len == 0).nonzero()
    if empty.numel():
        name = "mask" if cu_seqlens is None else "cu_seqlens"
        raise ValueError(f"{name}: row {int(empty[0])} has no token to pool")
    if prefix_sum is not None:
        sums = sums + prefix_sum.to(torch.float64)
    return (sums / (counts + prefix_len)[:, None]).to(torch.float32)


def halving_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over the last dimension in one fixed order: values [..., D] float64 -> [...].

    D is padded with zeros to a power of two; the upper half is added to the lower until one number is left.
    The order is part of the specification: it decides which of two rows is farther when their distances
    differ in the last bits alone.
    """
    width = 1 << max(0, values.shape[-1] - 1).bit_length()
    values = torch.nn.functional.pad(values, (0, width - values.shape[-1]))
    while width > 1:
        width //= 2
        values = values[..., :width] + values[..., width:]
    return values[..., 0]


def sqdist_to(x: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances by direct difference: x [N, D], center [D] -> [N] float64."""
    out = torch.empty(x.shape[0], dtype=torch.float64, device=x.device)
    center = center.to(torch.float64)
    rows = max(1, CHUNK_ELEMENTS // max(1, x.shape[1]))
    for start in range(0, x.shape[0], rows):
        difference = x[start : start + rows].to(torch.float64) - center  # [rows, D]
        out[start : start + rows] = halving_sum(difference * difference)
    return out


def as_bound(sqdist: torch.Tensor) -> torch.Tensor:
    """float64 values as float32, none of them lower."""
    rounded = sqdist.to(torch.float32)
    return torch.where(rounded < sqdist, torch.nextafter(rounded, torch.full_like(rounded, float("inf"))), rounded)


def min_sqdist(x: torch.Tensor, centers: torch.Tensor, bound: torch.Tensor) -> None:
    """Screen: bound [N] float32 becomes at most each row's squared distance to its nearest center, rounded up.

    x [N, D]; centers [M, D], values. In place; a bound of -infinity stays.
    """
    nearest = torch.full((x.shape[0],), float("inf"), dtype=torch.float64, device=x.device)
    for center in centers:
        nearest = torch.minimum(nearest, sqdist_to(x, center))
    bound.copy_(torch.minimum(bound, as_bound(nearest)))


def pick_block(
    rows: torch.Tensor, centers: torch.Tensor, bound: torch.Tensor, threshold: float, stop: float, max_picks: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Greedy among `rows` [B, D] against `centers` [M, D], while the winner is above threshold and stop.

    Returns the picks (indices of `rows`, in pick order), their squared distances when picked, and that of the winner
    that was not picked (-1 when no row remains; no meaning after max_picks). bound [B] float32 becomes each row's
    present distance, rounded up, and -infinity for the picks.
    """
    nearest = torch.full((rows.shape[0],), float("inf"), dtype=torch.float64, device=rows.device)
    for center in centers:
        nearest = torch.minimum(nearest, sqdist_to(rows, center))
    picks: list[int] = []
    sqdist: list[float] = []
    following = -1.0
    while len(picks) < max_picks:
        winner = int((nearest == nearest.max()).nonzero()[0])
        following = float(nearest[winner])
        if following <= max(threshold, stop, -1.0):
            break
        picks.append(winner)
        sqdist.append(following)
        nearest = torch.where(nearest < 0, nearest, torch.minimum(nearest, sqdist_to(rows, rows[winner])))
        nearest[winner] = -1.0
    remaining = torch.where(nearest < 0, -float("inf"), nearest)
    bound.copy_(torch.minimum(bound, as_bound(remaining)))
    return torch.tensor(picks, dtype=torch.int64), torch.tensor(sqdist, dtype=torch.float64), following


def update_argmax(x: torch.Tensor, center: torch.Tensor, nearest: torch.Tensor) -> int:
    """The streaming step: nearest [N] float64 falls to the squared distance to `center` [D]; the farthest row.

    Lowest row on ties. Negative entries are centers and stay.
    """
    nearest.copy_(torch.where(nearest < 0, nearest, torch.minimum(nearest, sqdist_to(x, center))))
    return int((nearest == nearest.max()).nonzero()[0])


def logits_of(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """hidden [T, D], weight [V, D], bias [V] -> hidden @ weight.T + bias, [T, V] float64."""
    entries = max(1, CHUNK_ELEMENTS // weight.shape[1])
    hidden = hidden.to(torch.float64)
    logits = torch.cat([hidden @ part.to(torch.float64).T for part in weight.split(entries)], dim=1)
    return logits if bias is None else logits + bias.to(torch.float64)


def logit_stats(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each token's logits, hidden @ weight.T + bias: the largest, its margin over the second, softmax's entropy.

    hidden [T, D], weight [V, D] with V >= 1, bias [V] or None. Returns [T] float32 three times, the margin infinite
    where V is 1, the entropy in nats, and the first token with a logit, or a difference from its
    largest logit, that is not finite in float32: int64 [1], -1 for none.
    """
    largest, margin, entropy = torch.empty((3, len(hidden)), dtype=torch.float32, device=hidden.device)
    bad = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    tokens = max(1, CHUNK_ELEMENTS // max(weight.shape))
    for start in range(0, len(hidden), tokens):
        part = slice(start, start + tokens)
        logits = logits_of(hidden[part], weight, bias)  # [tokens, V]
        single = logits.to(torch.float32)
        bad[part] = ~torch.isfinite(single - single.amax(dim=1, keepdim=True)).all(dim=1)
        top = torch.nn.functional.pad(logits, (0, 1), value=-float("inf")).topk(2, dim=1).values  # [tokens, 2]
        largest[part] = top[:, 0]
        margin[part] = top[:, 0] - top[:, 1]
        entropy[part] = torch.special.entr(torch.softmax(logits, dim=1)).sum(dim=1)
    first = bad.nonzero()[:1, 0]
    return largest, margin, entropy, first if len(first) else first.new_full((1,), -1)


def kcenter(x: torch.Tensor, k: int, centers: list[int]) -> tuple[list[int], list[float]]:
    """K-Center greedy, or farthest-first traversal (Gonzalez 1985; DiverseEvol, arXiv 2311.08182, section 2).

    k times: pick the row that is farthest from its nearest center, lowest index on ties; it becomes a center.
    x [N, D]; centers: at least one index. Returns the indices of k rows in pick order, and each one's squared
    distance to its nearest center when picked. A row that is a center is never picked.
    """
    nearest = torch.full((x.shape[0],), float("inf"), dtype=torch.float64)
    for center in centers:
        nearest = torch.minimum(nearest, sqdist_to(x, x[center]))
    nearest[centers] = -1.0
    picks, sqdists = [], []
    for _ in range(k):
        farthest = int((nearest == nearest.max()).nonzero()[0])
        picks.append(farthest)
        sqdists.append(float(nearest[farthest]))
        nearest = torch.minimum(nearest, sqdist_to(x, x[farthest]))
        nearest[farthest] = -1.0
    return picks, sqdists


def lazy_kcenter(
    predicted: torch.Tensor, new: torch.Tensor, k: int, centers: list[int], allowance: float
) -> tuple[list[int], list[float], list[int]]:
    """kcenter of `new`, reading only the rows that can be picked if no row is farther than predicted by more.

    A row that has not been read is bounded by its distance in `predicted`, from the nearest center in `new`, plus the
    allowance. k times: the row with the largest bound is picked if it has been read; otherwise it is read, and greedy
    begins again. Of rows with equal bounds, one that has not been read comes first, then the lowest index.

    predicted, new: [N, D]; centers: at least one index, rows that have been read; allowance: a distance, not squared.
    Returns the picks, each one's squared distance to its nearest center when picked, and the indices of the rows read,
    in the order in which they were, without the centers.
    """
    unread = torch.ones(new.shape[0], dtype=torch.bool)
    unread[centers] = False
    read: list[int] = []
    while True:
        x = torch.where(unread[:, None], predicted.to(new.dtype), new)
        nearest = torch.full((new.shape[0],), float("inf"), dtype=torch.float64)  # squared
        for center in centers:
            nearest = torch.minimum(nearest, sqdist_to(x, new[center]))
        nearest[centers] = -1.0
        picks: list[int] = []
        sqdists: list[float] = []
        while len(picks) < k:
            widened = (nearest.clamp(min=0.0).sqrt() + allowance).square()
            bound = torch.where(unread, torch.maximum(widened, nearest), nearest)  # rounding must not lower it
            contenders = (bound == bound.max()).nonzero()[:, 0].tolist()
            row = min(contenders, key=lambda index: (not unread[index], index))
            if unread[row]:
                read.append(row)
                unread[row] = False
                break
            picks.append(row)
            sqdists.append(float(nearest[row]))
            nearest = torch.where(nearest < 0, nearest, torch.minimum(nearest, sqdist_to(x, new[row])))
            nearest[row] = -1.0
        else:
            return picks, sqdists, read
