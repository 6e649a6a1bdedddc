"""Every op on one shape: what is timed, ours without the checks that wait for the GPU; whether a result is right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from device_timing import DEVICE

from diverseevol_fast.ops import backends, reference
from diverseevol_fast.ops.audit import first_violation, sqdist_from_below
from diverseevol_fast.ops.kernels import LAUNCHERS, Kernel

CHUNK = 8192  # rows of the chunked product
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass
class Case:
    """One op on one shape."""

    runs: dict[str, Callable[[], Any]]  # by contender; ours are named as kernels.Kernel prints them
    right: Callable[[str, Any], bool]  # gets a contender's name and what its run returned
    work: dict[str, int]  # bytes read once, and FLOPs of products


def infinite(count: int) -> torch.Tensor:
    return torch.full((count,), float("inf"), device=DEVICE)


def padded(batch: int, tokens: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.randn(batch, tokens, dim, device=DEVICE).to(dtype)
    lengths = torch.randint(tokens // 3, tokens + 1, (batch, 1), device=DEVICE)
    return hidden, torch.arange(tokens, device=DEVICE) < lengths


def ours(op: str, dtype: torch.dtype, run: Callable[[str], Any]) -> dict[str, Callable[[], Any]]:
    """A kernel of each launcher; run(backend) queues the op there."""
    return {name: lambda backend=backend: run(backend) for name, backend in kernel_backends(op, dtype).items()}


def kernel_backends(op: str, dtype: torch.dtype) -> dict[str, str]:
    """The kernels of an op that any GPU has, and the backend that launches each of them and no other."""
    text = str(dtype).removeprefix("torch.")
    general = {"cuda": "cuda_general" if op == "min_sqdist" else "cuda", "triton": "triton"}
    usable = [name for name in LAUNCHERS if backends.unusable(name, DEVICE) is None]
    return {str(Kernel(name, op, text)): general[name] for name in usable}


def is_ours(name: str) -> bool:
    return name.split(" ")[0].rstrip(",") in LAUNCHERS


def compiled(run: Callable[[], Any], wanted: bool) -> dict[str, Callable[[], Any]]:
    """The same by torch.compile, on one shape of an op: compiling takes seconds."""
    return {"torch.compile": torch.compile(run, dynamic=False)} if wanted else {}


def run_op(backend: str, op: str, *arguments: Any) -> Any:
    return backends.run(backend, op, arguments[0].device, *arguments)


def pooling(dtype: torch.dtype, batch: int, tokens: int, dim: int) -> Case:
    hidden, mask = padded(batch, tokens, dim, dtype)
    expected = reference.masked_mean_pool(hidden, mask)

    def eager():
        return (hidden * mask[:, :, None]).sum(1, dtype=F32) / mask.sum(1, keepdim=True)

    def right(name, pooled):
        pooled = pooled[0] if is_ours(name) else pooled
        return bool((pooled - expected).abs().max() < (1e-5 if is_ours(name) or dtype == F32 else 1e-2))

    runs = {"eager": eager} | compiled(eager, dtype == BF16)
    runs |= ours("masked_mean_pool", dtype, lambda name: run_op(name, "masked_mean_pool", hidden, mask, None, None, 0))
    return Case(runs, right, {"bytes": int(mask.sum()) * dim * hidden.element_size()})


def screening(dtype: torch.dtype, n: int, dim: int, count: int) -> Case:
    x = torch.randn(n, dim, device=DEVICE).to(dtype)
    centers, offset = x[:count].float(), x[:4096].float().mean(dim=0)
    points, squares = centers.to(dtype), (centers**2).sum(1).to(dtype)
    below = sqdist_from_below(x, centers, offset)

    def nearest(rows):
        return (squares - 2 * (rows @ points.T)).min(dim=1).values + rows.float().square().sum(1)

    def eager():
        return nearest(x)

    def chunked():
        return torch.cat([nearest(rows) for rows in x.split(CHUNK)])

    def screen(backend):
        bound = infinite(n)
        run_op(backend, "min_sqdist", x, centers, offset, bound, None)
        return bound

    def products(how):
        from diverseevol_fast.triton_ops import min_sqdist as module

        bound = infinite(n)
        module.min_sqdist(x, centers, offset, bound, None, how)
        return bound

    def right(name, bound):
        tolerance = 0.05 * below + 0.05 * float(squares.max())  # a center's own row is at 0
        close = bool(((bound - below).abs() < tolerance).all())
        return close and (not is_ours(name) or int(first_violation(bound, below)) < 0)

    runs = {"eager": eager, "chunked product": chunked} | compiled(eager, dtype == BF16 and count == 1024)
    runs |= ours("min_sqdist", dtype, screen)
    if suits_hopper(x, count):
        runs[f"cuda min_sqdist_hopper {str(dtype).removeprefix('torch.')}"] = lambda: screen("cuda")
    if dtype == F32 and backends.unusable("triton", DEVICE) is None:  # which products are its own choice rests on this
        runs |= {f"triton, {how}": lambda how=how: products(how) for how in ("bfloat16", "float16", "float32")}
    return Case(runs, right, {"bytes": x.nbytes, "flops": 2 * n * dim * count})


def suits_hopper(x: torch.Tensor, count: int) -> bool:
    """Whether "cuda" takes Hopper's kernel for a screen of all rows against so many centers."""
    if backends.unusable("cuda", DEVICE) is not None:
        return False
    from diverseevol_fast.ops import native

    return native.suits_hopper(x, None, count)


def fused(dtype: torch.dtype, batch: int, tokens: int, dim: int, count: int) -> Case:
    hidden, mask = padded(batch, tokens, dim, dtype)
    centers = torch.randn(count, dim, device=DEVICE)
    offset = centers.mean(dim=0)
    expected = reference.masked_mean_pool(hidden, mask)
    rows = (hidden, mask, None, None, 0)

    def together(backend):
        bound = infinite(batch)
        return run_op(backend, "pool_min_sqdist", *rows, centers, offset, bound)[0], bound

    def apart(backend):
        bound = infinite(batch)
        pooled = run_op(backend, "masked_mean_pool", *rows)[0]
        run_op(backend, "min_sqdist", pooled, centers, offset, bound, None)
        return pooled, bound

    def right(_, result):
        pooled, bound = result
        below = sqdist_from_below(pooled, centers, offset)
        return bool((pooled - expected).abs().max() < 1e-5) and int(first_violation(bound, below)) < 0

    runs = {f"{name}, two calls": run for name, run in ours("pool_min_sqdist", dtype, apart).items()}
    runs |= ours("pool_min_sqdist", dtype, together)
    return Case(runs, right, {"bytes": int(mask.sum()) * dim * hidden.element_size()})


def streaming(dtype: torch.dtype, n: int, dim: int) -> Case:
    x = torch.randn(n, dim, device=DEVICE).to(dtype)
    center, nearest = x[0].float(), torch.empty(n, dtype=torch.float64, device=DEVICE)
    expected = reference.update_argmax(x, center, nearest.fill_(float("inf")))

    def update(backend):
        return run_op(backend, "update_argmax", x, center, nearest.fill_(float("inf")))

    def eager():
        return torch.minimum(infinite(n), (x - center).square().sum(1)).argmax()

    runs = {"eager": eager} | ours("update_argmax", dtype, update)
    return Case(runs, lambda _, farthest: int(farthest) == expected, {"bytes": x.nbytes})


def blocks(_: torch.dtype, size: int, dim: int, count: int, picks: int) -> Case:
    x = torch.randn(size + count, dim, device=DEVICE)
    rows, centers, offset = x[count:].clone(), x[:count].clone(), x.mean(dim=0)
    expected = reference.pick_block(rows, centers, infinite(size), -1.0, -1.0, picks)[0].tolist()
    threshold = torch.full((1,), -1.0, dtype=torch.float64, device=DEVICE)

    def pick(backend):
        return run_op(backend, "pick_block", rows, centers, offset, infinite(size), threshold, -1.0, picks)

    def right(_, found):
        return found[2 : 2 + int(found[0])].tolist() == expected

    work = {"bytes": x.nbytes, "flops": 2 * size * dim * (count + picks)}
    return Case(ours("pick_block", F32, pick), right, work)


def logits(dtype: torch.dtype, tokens: int, dim: int, vocabulary: int) -> Case:
    hidden = torch.randn(tokens, dim, device=DEVICE).to(dtype)
    weight = (torch.randn(vocabulary, dim, device=DEVICE) * 4 / dim**0.5).to(dtype)
    expected = reference.logit_stats(hidden, weight, None)[:3]

    def eager():
        logits = (hidden @ weight.T).float()
        top = logits.topk(2, dim=1).values
        logarithm = torch.log_softmax(logits, dim=1)
        return top[:, 0], top[:, 0] - top[:, 1], -(logarithm.exp() * logarithm).sum(1)

    def right(name, found):
        bound = 5e-3 if is_ours(name) or dtype == F32 else 0.2
        return all(bool(((a - b).abs() <= bound * (1 + b)).all()) for a, b in zip(found[:3], expected, strict=True))

    runs = {"eager": eager} | compiled(eager, dtype == BF16)
    runs |= ours("logit_stats", dtype, lambda name: run_op(name, "logit_stats", hidden, weight, None))
    return Case(runs, right, {"bytes": hidden.nbytes + weight.nbytes, "flops": 2 * tokens * dim * vocabulary})


CASES = {  # the shapes that matter most come first: time may run out
    "masked_mean_pool": (pooling, [(BF16, 256, 512, 4096), *((dtype, 64, 512, 4096) for dtype in (F16, F32))]),
    "min_sqdist": (
        screening,
        [
            (BF16, 262_144, 4096, 32),
            (BF16, 65_536, 4096, 1024),
            (F32, 262_144, 4096, 32),
            (F16, 262_144, 4096, 32),
            (F32, 65_536, 4096, 1024),
            (F16, 65_536, 4096, 1024),
            (BF16, 65_536, 1024, 4096),
            (BF16, 65_536, 4096, 4096),
            (BF16, 8_192, 4096, 968),
        ],
    ),
    "pool_min_sqdist": (fused, [(BF16, 256, 512, 4096, 32), *((dtype, 64, 512, 4096, 32) for dtype in (F16, F32))]),
    "update_argmax": (streaming, [(BF16, 65_536, 4096), (F32, 65_536, 4096), (F16, 65_536, 4096), (F32, 65_536, 384)]),
    "pick_block": (blocks, [(F32, 2_048, 4096, 1000, 100), (F32, 512, 4096, 1000, 100), (F32, 512, 384, 1000, 400)]),
    "logit_stats": (logits, [(dtype, 4096, 4096, 32_000) for dtype in (BF16, F16, F32)]),
}
TINY = {  # the same where there is no GPU: in Triton's interpreter, for the tests of this benchmark
    "masked_mean_pool": (pooling, [(BF16, 3, 9, 70)]),
    "min_sqdist": (screening, [(BF16, 70, 40, 33)]),
    "pool_min_sqdist": (fused, [(F32, 3, 9, 70, 8)]),
    "update_argmax": (streaming, [(F32, 60, 33)]),
    "pick_block": (blocks, [(F32, 40, 33, 5, 9)]),
    "logit_stats": (logits, [(F32, 5, 40, 70)]),
}
