"""The problems of the self-check: every kernel passes them, on an emulated GPU and in Triton's interpreter, and planted
faults are found."""

import pytest
import torch
from support.gpu import cuda_works

from diverseevol_fast.ops import backends, check_child, check_problems, kernels
from diverseevol_fast.ops.kernels import Kernel
from diverseevol_fast.ops.self_check import Verdict

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SMALL = [kernel for kernel in kernels.all_kernels((8, 0)) if kernel.launcher == "triton"]
SMALL += [Kernel("cuda", kernel.name, kernel.dtype) for kernel in SMALL]
SMALL += [Kernel("cuda", "min_sqdist_hopper", dtype) for dtype in ("bfloat16", "float16")]


@pytest.fixture(scope="module")
def emulated():
    with cuda_works():
        yield


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.parametrize("kernel", SMALL, ids=str)
def test_the_problems_pass(emulated, kernel):
    if kernel.launcher == "triton":
        pytest.importorskip("triton")
    if not torch.cuda.is_available():
        assert check_child.checked(str(kernel), CPU, "small") == Verdict(True)
        return
    if kernel not in kernels.all_kernels(torch.cuda.get_device_capability()):
        pytest.skip("this GPU has no such kernel")
    assert check_child.checked(str(kernel), torch.device("cuda", 0), "first_use") == Verdict(True)


def faulty(monkeypatch, change):
    """The results of a backend are changed before the caller gets them."""
    run = backends.run

    def wrong(name, op, device, *given):
        found = run("native", op, device, *given)
        change(given, found)
        return found

    monkeypatch.setattr(backends, "run", wrong)


def lowered(rate):
    def change(given, found):
        x, bound = given[0], given[3]
        wrong = torch.arange(len(x)) % rate == 5
        bound[wrong] = torch.where(bound[wrong].isinf(), bound[wrong], 0.9 * bound[wrong])

    return change


def forgotten(given, found):
    given[3][7] = float("inf")


def center_lost(given, found):
    given[3][len(given[0]) // 2] = 0.0


def silent(given, found):
    found.fill_(-1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lowered(50), "is below its squared distance"),
        (forgotten, "far above its distance, or was not lowered"),
        (center_lost, "the bound of a center was changed"),
        (silent, "holds a NaN, and row -1 is named"),
    ],
)
def test_a_planted_fault_of_a_screen_is_found(monkeypatch, change, reason):
    if backends.native_unavailable():
        pytest.skip(backends.native_unavailable())
    faulty(monkeypatch, change)
    verdict = check_child.checked("cuda min_sqdist float32", CPU, "small")
    assert verdict.passed is False
    assert reason in verdict.reason
    assert verdict.reason.startswith("150x70x33: ")


def test_results_that_differ_from_one_run_to_the_next_are_found(monkeypatch):
    if backends.native_unavailable():
        pytest.skip(backends.native_unavailable())
    calls = []

    def change(given, found):
        calls.append(1)
        given[3][3] = torch.nextafter(given[3][3], torch.tensor(float("inf"))) if len(calls) % 2 else given[3][3]

    faulty(monkeypatch, change)
    assert check_child.checked("cuda min_sqdist float32", CPU, "small").reason.endswith("two runs gave different bits")


@pytest.mark.parametrize("sizes", ["first_use", "large"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_problems_of_the_screen_reach_every_tile_of_triton(sizes, dtype):
    """Few centers and many, with and without Triton's knowledge of addresses and widths."""
    module = pytest.importorskip("diverseevol_fast.triton_ops.min_sqdist")
    stored = getattr(torch, dtype)
    elements = module.PRODUCTS[module.PRODUCTS_OF[stored]].elements
    size = max(stored.itemsize, elements.itemsize)
    reached = {
        module.tile_of(torch.empty(1, dim, dtype=stored), count, elements)
        for _, dim, count in check_problems.SIZES["min_sqdist"][sizes]
    }
    assert reached == {*module.TILES[size], *module.UNALIGNED[size]}


def test_every_kernel_has_problems_of_every_size():
    for kernel in {*kernels.all_kernels((9, 0)), Kernel("cuda", "min_sqdist_hopper", "bfloat16")}:
        assert set(check_problems.SIZES[kernel.name]) == {"small", "first_use", "large"}
        assert kernel.op in check_problems.PROBLEMS
