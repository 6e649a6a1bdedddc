"""Tests of the Triton kernels alone: all kinds of rows and products, and their compilation for GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from support.gpu import DTYPES, infinite, rows
from support.problems import KINDS

from diverseevol_fast import kcenter
from diverseevol_fast.ops import reference

# The interpreter computes in numpy, which warns of the infinities and NaNs that are given here on purpose.
pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"), pytest.mark.slow]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_picks_as_the_specification(kind, dtype):
    x = rows(kind, 40, 9, 1, offset=3.0).to(dtype)
    expected, sqdist = reference.kcenter(x.cpu(), 10, [5, 33])
    for how in ({"block_size": 12}, {"method": "streaming"}):
        result = kcenter(x, 10, [5, 33], backend="triton", **how)
        assert result.indices.tolist() == expected
        assert result.sqdist.tolist() == sqdist


@pytest.mark.parametrize("products", ["bfloat16", "float16", "tf32x3", "float32"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e5])
def test_bounds_hold_whatever_the_products(products, scale):
    """float16 overflows at the largest scale, where bounds stay infinite."""
    from diverseevol_fast.triton_ops import min_sqdist as module

    x = rows("gaussian", 70, 40, 7, offset=3.0) * scale
    centers, exact, bound = x[:35].clone() * 1.1, infinite(70), infinite(70)
    reference.min_sqdist(x, centers, exact)
    module.min_sqdist(x, centers, x.mean(dim=0), bound, None, products)
    assert (bound >= exact).all()
    wide = {"bfloat16": 0.05, "float16": 0.01, "tf32x3": 1e-3, "float32": 1e-3}[products]
    if not (products == "float16" and scale == 1e5):
        assert (bound <= exact + wide * exact.max()).all()


def test_every_kernel_compiles_for_gpus_without_spilling():
    """Ahead of time, for sm_80, 90 and 100; needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).resolve().parents[1] / "compile_triton.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["sm"] for line in lines} == {80, 90, 100}
    assert [line for line in lines if line["spilled"]] == []
    assert max(line["shared"] for line in lines) <= 99 * 1024  # the most that a block may use on sm_86 and sm_89
