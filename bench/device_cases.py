"""Every op on one shape: the reference, our backends, plain torch doing the same, and whether each is right."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from device_timing import DEVICE

from diverseevol_fast.ops import (
    backends,
    logit_stats,
    masked_mean_pool,
    min_sqdist,
    pick_block,
    pool_min_sqdist,
    reference,
    update_argmax,
)

OURS = ("cuda", "triton")
REFERENCE_PRODUCTS = 4e10  # so many differences in float64 take less than a second; beyond, CHECKED rows are compared
CHECKED = 512
CHUNK = 8192  # rows of the chunked product
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass
class Case:
    """One op on one shape. `right` gets a contender's name and what its run returned."""

    reference: Callable[[], Any]
    runs: dict[str, Callable[[], Any]]
    right: Callable[[str, Any], bool]
    work: dict[str, int]
    covers_all: bool = field(default=True)  # whether the reference is of the whole shape, so that its time is


def ours(run: Callable[[str], Any]) -> dict[str, Callable[[], Any]]:
    """Our backends that can run here."""
    usable = [name for name in OURS if backends.unusable(name, DEVICE) is None]
    return {name: lambda name=name: run(name) for name in usable}


def compiled(run: Callable[[], Any], wanted: bool) -> dict[str, Callable[[], Any]]:
    """The same by torch.compile, on one shape of an op: compiling takes seconds."""
    return {"torch.compile": torch.compile(run, dynamic=False)} if wanted else {}


def infinite(count: int) -> torch.Tensor:
    return torch.full((count,), float("inf"), device=DEVICE)


def padded(batch: int, tokens: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.randn(batch, tokens, dim, device=DEVICE).to(dtype)
    lengths = torch.randint(tokens // 3, tokens + 1, (batch, 1), device=DEVICE)
    return hidden, torch.arange(tokens, device=DEVICE) < lengths


def pooling(dtype: torch.dtype, batch: int, tokens: int, dim: int) -> Case:
    hidden, mask = padded(batch, tokens, dim, dtype)
    expected = reference.masked_mean_pool(hidden, mask)

    def eager():
        return (hidden * mask[:, :, None]).sum(1, dtype=F32) / mask.sum(1, keepdim=True)

    def right(name, pooled):
        return bool((pooled - expected).abs().max() < (1e-5 if name in OURS or dtype == F32 else 1e-2))

    runs = {"eager": eager} | compiled(eager, dtype == BF16)
    runs |= ours(lambda name: masked_mean_pool(hidden, mask, backend=name))
    work = {"bytes": int(mask.sum()) * dim * hidden.element_size()}
    return Case(lambda: reference.masked_mean_pool(hidden, mask), runs, right, work)


def screening(dtype: torch.dtype, n: int, dim: int, count: int) -> Case:
    x = torch.randn(n, dim, device=DEVICE).to(dtype)
    centers, offset = x[:count].float(), x[:4096].float().mean(dim=0)
    points, squares = centers.to(dtype), (centers**2).sum(1).to(dtype)
    checked = n if n * dim * count <= REFERENCE_PRODUCTS else CHECKED

    def exact():
        bound = infinite(checked)
        reference.min_sqdist(x[-checked:], centers, bound)
        return bound

    expected = exact()

    def nearest(rows):
        return (squares - 2 * (rows @ points.T)).min(dim=1).values + rows.float().square().sum(1)

    def eager():
        return nearest(x)

    def chunked():
        return torch.cat([nearest(rows) for rows in x.split(CHUNK)])

    def screen(name):
        bound = infinite(n)
        min_sqdist(x, centers, offset, bound, backend=name)
        return bound

    def products(how):
        from diverseevol_fast.triton_ops import min_sqdist as module

        bound = infinite(n)
        module.min_sqdist(x, centers, offset, bound, None, how)
        return bound

    def right(name, bound):
        off = bound[-checked:] - expected
        tolerance = 0.05 * expected + 0.05 * float(squares.max())  # a centre's own row is at 0
        return bool((off.abs() < tolerance).all() and (name not in OURS or (off >= 0).all()))

    runs = (
        {"eager": eager, "chunked product": chunked} | compiled(eager, dtype == BF16 and count == 1024) | ours(screen)
    )
    if "triton" in runs and dtype == F32:  # which products are its own choice is decided by this
        runs |= {f"triton, {how}": lambda how=how: products(how) for how in ("bfloat16", "float16", "float32")}
    return Case(exact, runs, right, {"bytes": x.nbytes, "flops": 2 * n * dim * count}, covers_all=checked == n)


def fused(dtype: torch.dtype, batch: int, tokens: int, dim: int, count: int) -> Case:
    hidden, mask = padded(batch, tokens, dim, dtype)
    centers = torch.randn(count, dim, device=DEVICE)
    offset = centers.mean(dim=0)

    def exact():
        pooled, bound = reference.masked_mean_pool(hidden, mask), infinite(batch)
        reference.min_sqdist(pooled, centers, bound)
        return pooled, bound

    expected = exact()[0]

    def together(name):
        bound = infinite(batch)
        given = {"centers": centers, "offset": offset, "bound": bound, "backend": name}
        return pool_min_sqdist(hidden, mask, **given), bound

    def apart(name):
        bound = infinite(batch)
        pooled = masked_mean_pool(hidden, mask, backend=name)
        min_sqdist(pooled, centers, offset, bound, backend=name)
        return pooled, bound

    def right(_, result):
        pooled, bound = result
        nearest = infinite(batch)
        reference.min_sqdist(pooled, centers, nearest)
        return bool((pooled - expected).abs().max() < 1e-5 and (bound >= nearest).all())

    runs = {f"{name}, two calls": run for name, run in ours(apart).items()} | ours(together)
    return Case(exact, runs, right, {"bytes": int(mask.sum()) * dim * hidden.element_size()})


def streaming(dtype: torch.dtype, n: int, dim: int) -> Case:
    x = torch.randn(n, dim, device=DEVICE).to(dtype)
    center = x[0].float()

    def update(name):
        nearest = torch.full((n,), float("inf"), dtype=torch.float64, device=DEVICE)
        return update_argmax(x, center, nearest, backend=name)

    def eager():
        return int(torch.minimum(infinite(n), (x - center).square().sum(1)).argmax())

    expected = update("reference")
    runs = {"eager": eager} | ours(update)
    return Case(lambda: update("reference"), runs, lambda _, farthest: farthest == expected, {"bytes": x.nbytes})


def blocks(_: torch.dtype, size: int, dim: int, count: int, picks: int) -> Case:
    x = torch.randn(size + count, dim, device=DEVICE)
    rows, centers, offset = x[count:].clone(), x[:count].clone(), x.mean(dim=0)

    def pick(name):
        return pick_block(rows, centers, offset, infinite(size), -1.0, -1.0, picks, backend=name)[0].tolist()

    expected = pick("reference")
    work = {"bytes": x.nbytes, "flops": 2 * size * dim * (count + picks)}
    return Case(lambda: pick("reference"), ours(pick), lambda _, found: found == expected, work)


def logits(dtype: torch.dtype, tokens: int, dim: int, vocabulary: int) -> Case:
    hidden = torch.randn(tokens, dim, device=DEVICE).to(dtype)
    weight = (torch.randn(vocabulary, dim, device=DEVICE) * 4 / dim**0.5).to(dtype)

    def eager():
        logits = (hidden @ weight.T).float()
        top = logits.topk(2, dim=1).values
        logarithm = torch.log_softmax(logits, dim=1)
        return top[:, 0], top[:, 0] - top[:, 1], -(logarithm.exp() * logarithm).sum(1)

    def measure(name):
        return logit_stats(hidden, weight, backend=name)

    expected = measure("reference")

    def right(name, found):
        bound = 5e-3 if name in OURS or dtype == F32 else 0.2
        return all(bool(((a - b).abs() <= bound * (1 + b)).all()) for a, b in zip(found, expected, strict=True))

    runs = {"eager": eager} | compiled(eager, dtype == BF16) | ours(measure)
    work = {"bytes": hidden.nbytes + weight.nbytes, "flops": 2 * tokens * dim * vocabulary}
    return Case(lambda: measure("reference"), runs, right, work)


CASES = {
    "masked_mean_pool": (pooling, [(dtype, 64, 512, 4096) for dtype in (BF16, F16, F32)]),
    "min_sqdist": (screening, [
        *((dtype, 262_144, 4096, 32) for dtype in (BF16, F16, F32)),
        *((dtype, 65_536, 4096, 1024) for dtype in (BF16, F16, F32)),
        (BF16, 65_536, 1024, 4096), (BF16, 65_536, 4096, 4096),
    ]),
    "pool_min_sqdist": (fused, [(dtype, 64, 512, 4096, 32) for dtype in (BF16, F16, F32)]),
    "update_argmax": (streaming, [*((dtype, 65_536, 4096) for dtype in (BF16, F16, F32)), (F32, 65_536, 384)]),
    "pick_block": (blocks, [(F32, 256, 4096, 1000, 100), (F32, 512, 384, 1000, 400)]),
    "logit_stats": (logits, [(dtype, 4096, 4096, 32_000) for dtype in (BF16, F16, F32)]),
}  # fmt: skip
# Widths that are a multiple of a tile and widths that are not: a backend may have a kernel for each.
SMALL = {
    "masked_mean_pool": (pooling, [(dtype, 3, 9, 70) for dtype in (BF16, F16, F32)]),
    "min_sqdist": (screening, [
        *((dtype, *size) for dtype in (BF16, F16, F32) for size in ((150, 70, 33), (128, 64, 8))),
        # Enough rows and centres for Hopper's own kernel; too many for Triton's interpreter.
        *([(BF16, 8200, 64, 200)] * (DEVICE == "cuda")),
    ]),
    "pool_min_sqdist": (fused, [(dtype, 3, 9, 300, 40) for dtype in (BF16, F16, F32)]),
    "update_argmax": (streaming, [(dtype, 300, 33) for dtype in (BF16, F16, F32)]),
    "pick_block": (blocks, [(F32, 40, 33, 5, 20)]),
    "logit_stats": (logits, [(dtype, 5, 40, 70) for dtype in (BF16, F16, F32)]),
}  # fmt: skip
