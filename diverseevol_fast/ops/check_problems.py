"""The self-check of a GPU kernel: problems that reach every path of it, all rows held against float64.

Every problem is computed twice, in memory filled with NaN, and must give the same bits twice.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.deterministic

from .._common.dtypes import torch_dtype
from . import backends, reference
from .audit import first_violation, sqdist_from_below
from .kernels import Kernel

DETERMINISM: Any = torch.utils.deterministic  # its one attribute is set on the class of the module
LOGITS_OFF = 2e-3  # the largest relative error of statistics of logits: a hundred times that of float32 sums
NEAR = 0.05  # how far above the distance a bound may be, of (|x - offset| + |c - offset|)^2
# For each op the shapes of its problems. "small" suits an emulated GPU and Triton's interpreter, "first_use" reaches
# every path in seconds with less than 300 MB, "large" is what bench/device.sh checks.
SIZES: dict[str, dict[str, list[tuple[int, ...]]]] = {
    "masked_mean_pool": {  # rows, tokens, columns: lists of more than 1,024 tokens, whole chunks of columns or not
        "small": [(3, 9, 70), (2, 1100, 8)],
        "first_use": [(5, 1500, 1030), (33, 77, 4096)],
        "large": [(5, 3000, 1030), (256, 512, 4096)],
    },
    "min_sqdist": {  # rows, columns, centers: few and many centers, widths divisible by 16 or not, ragged edges
        "small": [(150, 70, 33), (128, 64, 8), (140, 80, 257), (33, 17, 5)],
        "first_use": [(10_007, 203, 20), (1_001, 328, 300), (40_000, 64, 32), (5_003, 384, 300)],
        "large": [(20_011, 4_104, 32), (20_011, 4_096, 1_000), (20_011, 4_104, 1_000), (262_144, 1_024, 32)],
    },
    "min_sqdist_hopper": {  # more steps than stages, more tiles than multiprocessors, chosen rows in several chunks
        "small": [(300, 328, 257)],
        "first_use": [(20_011, 328, 257), (16_500, 4_096, 192)],
        "large": [(20_011, 4_104, 1_000), (40_000, 328, 257), (262_144, 1_024, 968)],
    },
    "pool_min_sqdist": {  # rows, tokens, columns, centers: those of the launch, and those that are screened after it
        "small": [(3, 9, 300, 20), (3, 9, 72, 40)],
        "first_use": [(33, 77, 1030, 32), (65, 40, 4096, 200)],
        "large": [(256, 512, 4096, 32), (256, 512, 4096, 1_000)],
    },
    "update_argmax": {  # rows, columns: narrow, powers of two and others, more rows than programs
        "small": [(130, 33), (40, 256), (5, 1025)],
        "first_use": [(70_001, 33), (20_000, 1024), (3_001, 1025), (1_000, 4096)],
        "large": [(1_000_000, 33), (65_536, 4096), (20_000, 1025)],
    },
    "pick_block": {  # rows, columns, centers, picks
        "small": [(40, 33, 5, 20), (30, 256, 70, 9)],
        "first_use": [(512, 384, 100, 60), (257, 1030, 65, 257), (256, 4096, 300, 20)],
        "large": [(2_048, 4_096, 1_000, 100), (512, 384, 1_000, 400)],
    },
    "logit_stats": {  # tokens, columns, vocabulary
        "small": [(5, 40, 70)],
        "first_use": [(300, 576, 5_003), (130, 70, 2_000)],
        "large": [(4_096, 4_096, 32_000), (300, 576, 49_152)],
    },
}


class WrongResultError(Exception):
    """A kernel computed something else than the specification."""


def check(kernel: Kernel, device: torch.device, sizes: str) -> None:
    """Compute the problems of a kernel on a device and compare; sizes: "small", "first_use" or "large".

    Raises:
        WrongResultError: the message says which problem, and what is wrong.
    """
    problem = PROBLEMS[kernel.op]
    generator = torch.Generator(device).manual_seed(0)
    for shape in SIZES[kernel.name][sizes]:
        try:
            problem(kernel, device, generator, *shape)
        except WrongResultError as error:
            raise WrongResultError(f"{'x'.join(map(str, shape))}: {error}") from None


def _expect(holds: Any, what: str) -> None:
    if not bool(holds):
        raise WrongResultError(what)


def _twice(run: Callable[[], Any]) -> Any:
    """The result of run(), which must give the same bits when it is called again."""
    with _poisoned_memory():
        first, second = run(), run()
    for one, other in zip(_tensors(first), _tensors(second), strict=True):
        _expect(torch.equal(_bits(one), _bits(other)), "two runs gave different bits")
    return first


def _tensors(results: Any) -> tuple[torch.Tensor, ...]:
    return (results,) if isinstance(results, torch.Tensor) else results


def _bits(values: torch.Tensor) -> torch.Tensor:
    """Values as integers, so that a NaN equals itself."""
    return values.contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[values.itemsize])


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, or 255 in every byte: a kernel that reads scratch memory before writing it fails."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = DETERMINISM.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    DETERMINISM.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        DETERMINISM.fill_uninitialized_memory = filled


def _normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _infinite(count: int, device: torch.device) -> torch.Tensor:
    return torch.full((count,), float("inf"), device=device)


def _in_wider_rows(values: torch.Tensor) -> torch.Tensor:
    """The same values [N, D] as a view whose rows are not aligned; NaN around them."""
    wide = torch.full((len(values), values.shape[1] + 3), float("nan"), dtype=values.dtype, device=values.device)
    wide[:, 1:-2] = values
    return wide[:, 1:-2]


def _run(kernel: Kernel, *arguments: Any) -> Any:
    backend = "cuda_general" if (kernel.launcher, kernel.name) == ("cuda", "min_sqdist") else kernel.launcher
    return backends.run(backend, kernel.op, arguments[0].device, *arguments)


def _check_pooled(pooled: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor, prefix: torch.Tensor) -> None:
    """The means are those of float64, but for the rounding of float32 sums of groups of eight tokens."""
    rows = max(1, 8 * reference.CHUNK_ELEMENTS // hidden[0].numel())  # float64 copies of all rows would be large
    for part, states, tokens in zip(pooled.split(rows), hidden.split(rows), mask.split(rows), strict=True):
        exact = reference.masked_mean_pool(states, tokens, None, prefix, 3).to(torch.float64)
        sizes = reference.masked_mean_pool(states.abs(), tokens, None, prefix.abs(), 3).to(torch.float64)
        off = (part.to(torch.float64) - exact).abs()
        allowed = (hidden.shape[1] / 8 + 16) * 2.0**-24 * sizes
        _expect(((off <= allowed) & part.isfinite()).all(), f"a mean is off by {float((off / sizes).max()):.1e}")


def _padded(
    kernel: Kernel, generator: torch.Generator, batch: int, tokens: int, dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden, mask and the sum of a prefix of three tokens; masked positions hold NaN."""
    hidden = _normal(generator, batch, tokens, dim).to(torch_dtype(kernel.dtype))
    mask = torch.rand((batch, tokens), generator=generator, device=generator.device) < 0.7
    mask[:, -1] = True
    hidden[~mask] = float("nan")
    return hidden, mask, _normal(generator, dim)


def _packed(hidden: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
    """The same rows one after the other."""
    return hidden[mask], None, torch.nn.functional.pad(mask.sum(dim=1).cumsum(dim=0), (1, 0))


def _pooling(
    kernel: Kernel, device: torch.device, generator: torch.Generator, batch: int, tokens: int, dim: int
) -> None:
    hidden, mask, prefix = _padded(kernel, generator, batch, tokens, dim)
    wide = torch.full((batch, tokens, dim + 3), float("nan"), dtype=hidden.dtype, device=device)
    wide[:, :, 1:-2] = hidden
    cases = {"padded": (hidden, mask, None), "a view": (wide[:, :, 1:-2], mask, None), "packed": _packed(hidden, mask)}
    for name, rows in cases.items():
        pooled, empty = _twice(lambda rows=rows: _run(kernel, *rows, prefix, 3))
        _expect(int(empty) == -1, f"{name}: row {int(empty)} is said to be empty")
        _check_pooled(pooled, hidden, mask, prefix)
    mask[batch // 2] = False
    _, empty = _twice(lambda: _run(kernel, hidden, mask, None, None, 0))
    _expect(int(empty) == batch // 2, "the empty row is not named")


def _check_bounds(bound: torch.Tensor, x: torch.Tensor, centers: torch.Tensor, offset: torch.Tensor) -> None:
    """All bounds [N]: none below its float64 distance, none far above."""
    below = sqdist_from_below(x, centers, offset)
    wrong = int(first_violation(bound, below))
    if wrong >= 0:
        raise WrongResultError(
            f"bound {float(bound[wrong])!r} of row {wrong} is below its squared distance {float(below[wrong])!r}"
        )
    origin = offset.to(torch.float64)
    far = (centers.to(torch.float64) - origin).norm(dim=1).max()
    parts = x.split(max(1, reference.CHUNK_ELEMENTS // x.shape[1]))
    reach = torch.cat([(part.to(torch.float64) - origin).norm(dim=1) for part in parts]) + far
    _expect((bound <= below + NEAR * reach.square()).all(), "a bound is far above its distance, or was not lowered")


def _screen(
    kernel: Kernel, x: torch.Tensor, centers: torch.Tensor, offset: torch.Tensor, rows: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds after a screen, one of which was -infinity and the others infinite; the first row that is not finite."""

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        bound = _infinite(len(x), x.device)
        bound[len(x) // 2] = -float("inf")
        return bound, _run(kernel, x, centers, offset, bound, rows)

    bound, bad = _twice(run)
    _expect(bound[len(x) // 2] == -float("inf"), "the bound of a center was changed")
    return bound, bad


def _screening(kernel: Kernel, device: torch.device, generator: torch.Generator, n: int, dim: int, count: int) -> None:
    shift = 3.0 * _normal(generator, dim)
    x = torch.randn((n, dim), generator=generator, device=device, dtype=torch_dtype(kernel.dtype)).add_(shift)
    centers = x[torch.randperm(n, generator=generator, device=device)[:count]].to(torch.float32)
    offset = x[:1024].to(torch.float32).mean(dim=0)
    hopper = kernel.name.endswith("_hopper")
    # Half of the rows, or as many as a kernel for many rows needs to take them.
    rows = torch.randperm(n, generator=generator, device=device)[: max(n // 2, min(n, 8192))].sort().values
    if hopper:
        from . import native

        for chosen in (None, rows):
            _expect(native.suits_hopper(x, chosen, count), "the kernel does not take its own problem")
    for view in (
        (x,) if hopper else (x, _in_wider_rows(x))
    ):  # Hopper's kernel takes aligned rows alone, unless they are chosen by index
        bound, bad = _screen(kernel, view, centers, offset)
        _expect(int(bad) == -1, f"row {int(bad)} is said not to be finite")
        _check_bounds(bound, x, centers, offset)
    bound, _ = _screen(kernel, x, centers, offset, rows)
    _check_bounds(bound[rows], x[rows], centers, offset)
    others = torch.ones(n, dtype=torch.bool, device=device)
    others[rows] = False
    others[n // 2] = False
    _expect(bound[others].isinf().all(), "a row outside the given indices was bounded")
    last = int(rows[-1])
    x[last, dim - 1] = float("nan")
    for chosen in (None, rows):
        _, bad = _screen(kernel, x, centers, offset, chosen)
        _expect(int(bad) == last, f"row {last} holds a NaN, and row {int(bad)} is named")


def _pool_and_screen(
    kernel: Kernel, device: torch.device, generator: torch.Generator, batch: int, tokens: int, dim: int, count: int
) -> None:
    hidden, mask, prefix = _padded(kernel, generator, batch, tokens, dim)
    centers = _normal(generator, count, dim)
    offset = centers.mean(dim=0)

    def run(rows: tuple) -> tuple[torch.Tensor, ...]:
        bound = _infinite(batch, device)
        return (*_run(kernel, *rows, prefix, 3, centers, offset, bound), bound)

    for name, rows in {"padded": (hidden, mask, None), "packed": _packed(hidden, mask)}.items():
        pooled, empty, bad, bound = _twice(lambda rows=rows: run(rows))
        _expect((int(empty), int(bad)) == (-1, -1), f"{name}: row {int(empty)} or {int(bad)} is said to be wrong")
        _check_pooled(pooled, hidden, mask, prefix)
        _check_bounds(bound, pooled, centers, offset)
    hidden[batch - 1, tokens - 1, dim - 1] = float("nan")
    _, _, bad, _ = _twice(lambda: run((hidden, mask, None)))
    _expect(int(bad) == batch - 1, "the row that is not finite is not named")


def _streaming(kernel: Kernel, device: torch.device, generator: torch.Generator, n: int, dim: int) -> None:
    x = _normal(generator, n, dim).to(torch_dtype(kernel.dtype))
    x[n // 2 :] = x[: n - n // 2].clone()  # ties, of which the lowest row wins
    center = x[n // 3].to(torch.float32)
    start = torch.full((n,), float("inf"), dtype=torch.float64, device=device)
    start[n // 5] = -1.0
    expected = start.clone()
    farthest = reference.update_argmax(x, center, expected)
    for view in (x, _in_wider_rows(x)):

        def run(view: torch.Tensor = view) -> tuple[torch.Tensor, torch.Tensor]:
            nearest = start.clone()
            return _run(kernel, view, center, nearest), nearest

        index, nearest = _twice(run)
        _expect(torch.equal(nearest, expected), "a float64 distance is not that of the specification")
        _expect(int(index) == farthest, f"row {farthest} is the farthest, and {int(index)} is named")


def _blocks(
    kernel: Kernel, device: torch.device, generator: torch.Generator, size: int, dim: int, count: int, picks: int
) -> None:
    x = _normal(generator, size + count, dim)
    x[count + size // 2] = x[count]  # a tie
    rows, centers, offset = x[count:].clone(), x[:count].clone(), x.mean(dim=0)
    exact = _infinite(size, device)
    expected, sqdist, _ = reference.pick_block(rows, centers, exact, -1.0, -1.0, picks)
    threshold = torch.full((1,), float(sqdist[len(sqdist) // 2]), dtype=torch.float64, device=device)
    for least in (torch.full_like(threshold, -1.0), threshold):

        def run(least: torch.Tensor = least) -> tuple[torch.Tensor, ...]:
            bound = _infinite(size, device)
            result = _run(kernel, rows, centers, offset, bound, least, -1.0, picks)
            return result[0], result[2 : 2 + int(result[0])], result[2 + picks : 2 + picks + int(result[0])], bound

        number, indices, values, bound = _twice(run)
        above = len(sqdist) if float(least) < 0 else int((sqdist > float(least)).sum())
        _expect(int(number) == above, f"{above} picks are above the threshold, and {int(number)} were made")
        _expect(indices.tolist() == expected[:above].tolist(), "the picks are not those of float64 greedy")
        _expect(values.tolist() == sqdist[:above].tolist(), "a pick's distance is not that of the specification")
        _expect((bound >= exact).all(), "a bound is below its distance")


def _logits(
    kernel: Kernel, device: torch.device, generator: torch.Generator, tokens: int, dim: int, vocabulary: int
) -> None:
    dtype = torch_dtype(kernel.dtype)
    hidden, bias = _normal(generator, tokens, dim).to(dtype), _normal(generator, vocabulary)
    weight = (_normal(generator, vocabulary, dim) * 4 / dim**0.5).to(dtype)
    for added in (None, bias):
        *statistics, bad = _twice(lambda added=added: _run(kernel, hidden, weight, added))
        *expected, _ = reference.logit_stats(hidden, weight, added)
        for name, one, other in zip(("largest logit", "margin", "entropy"), statistics, expected, strict=True):
            off = ((one - other).abs() / (1 + other.abs())).max()
            _expect(off <= LOGITS_OFF, f"the {name} is off by {float(off):.1e}, relatively")
        _expect(int(bad) == -1, f"token {int(bad)} is said not to be finite")
    hidden[tokens - 1, dim - 1] = float("nan")
    *_, bad = _twice(lambda: _run(kernel, hidden, weight, None))
    _expect(int(bad) == tokens - 1, "the token that is not finite is not named")


PROBLEMS = {
    "masked_mean_pool": _pooling,
    "min_sqdist": _screening,
    "pool_min_sqdist": _pool_and_screen,
    "update_argmax": _streaming,
    "pick_block": _blocks,
    "logit_stats": _logits,
}
