"""Compiles every Triton kernel ahead of time, in its shipped configurations: python tests/compile_triton.py

Prints one JSON line for each: kernel, compute capability, bytes spilled, registers. Needs no GPU.
"""

import json
import subprocess
import sys
import tempfile

import torch
import triton
from diverseevol_fast.triton_ops import (
    logit_stats,
    masked_mean_pool,
    min_sqdist,
    pick_block,
    pool_min_sqdist,
    update_argmax,
)
from diverseevol_fast.triton_ops.sqdist import EXACT, LARGEST_WIDTH, rows_of
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

CAPABILITIES = (80, 90, 100)
I64, I32, F64, F32, BF16, F16, U8 = "*i64", "*i32", "*fp64", "*fp32", "*bf16", "*fp16", "*u8"


POOL = {
    "mask": U8, "starts": I64, "lengths": I64, "prefix_sum": F32, "prefix_len": "i32", "out": F32, "dim": "i32",
    "stride_token": "i32",
}  # fmt: skip


def pool(dtype, has_mask, has_prefix):
    """masked_mean_pool, padded or packed."""
    sizes = {"BLOCK_TOKENS": masked_mean_pool.BLOCK_TOKENS, "BLOCK_DIM": masked_mean_pool.BLOCK_DIM}
    constants = {"HAS_MASK": has_mask, "HAS_PREFIX": has_prefix, **sizes}
    return masked_mean_pool._masked_mean_pool_kernel, {"hidden": dtype, **POOL}, constants


def pool_and_screen(dtype, has_mask, has_prefix):
    """pool_min_sqdist, padded or packed."""
    _, signature, constants = pool(dtype, has_mask, has_prefix)
    signature |= {
        "centers": F32, "center_sqnorm": F32, "center_norms": F64, "offset": F32, "bound": F32, "parts": F32,
        "arrived": I32, "first_bad": I64, "num_centers": "i32",
    }  # fmt: skip
    return pool_min_sqdist._pool_min_sqdist_kernel, signature, constants | {"CENTERS": pool_min_sqdist.CENTERS}


def screen(dtype, has_numbers, products):
    """min_sqdist, of all rows or of some."""
    how = min_sqdist.PRODUCTS[products]
    elements = {torch.bfloat16: BF16, torch.float16: F16, torch.float32: F32}[how.elements]
    signature = {
        "x": dtype, "numbers": I64, "centers": elements, "center_sqnorm": F32, "center_norms": F64, "offset": F32,
        "bound": F32, "first_bad": I64, "count": "i32", "dim": "i32", "num_centers": "i32", "stride_row": "i32",
    }  # fmt: skip
    sizes = {name: getattr(min_sqdist, name) for name in ("BLOCK_ROWS", "BLOCK_CENTERS", "BLOCK_DIM")}
    return (
        min_sqdist._min_sqdist_kernel,
        signature,
        {
            "HAS_NUMBERS": has_numbers,
            "WIDEN": False,
            "PRECISION": how.precision,
            "SUMMANDS": how.summands,
            "ROUNDOFF": how.roundoff,
            **sizes,
        },
        min_sqdist.LAUNCH,
    )


def update(dtype, width):
    """update_argmax for rows of one width."""
    signature = {
        "x": dtype, "center": F32, "nearest": F64, "best": F64, "where": I64, "count": "i32", "dim": "i32",
        "stride_row": "i32",
    }  # fmt: skip
    return update_argmax._update_argmax_kernel, signature, {"ROWS": rows_of(width), "WIDTH": width}, EXACT


def statistics(dtype, has_bias):
    """logit_stats of spans of the vocabulary."""
    signature = {
        "hidden": dtype, "weight": dtype, "bias": F32, "parts": F32, "count": "i32", "vocab": "i32", "dim": "i32",
        "stride_hidden": "i32", "stride_weight": "i32",
    }  # fmt: skip
    size = 4 if dtype == F32 else 2
    constants = {"HAS_BIAS": has_bias, "WIDEN": False, "VOCAB_SPAN": logit_stats.VOCAB_SPAN, **logit_stats.BLOCKS[size]}
    return logit_stats._logit_stats_kernel, signature, constants, logit_stats.LAUNCH[size]


CONFIGURATIONS = [
    *(pool(dtype, *flags) for dtype in (F32, BF16, F16) for flags in ((True, False), (True, True), (False, False))),
    *(pool_and_screen(dtype, *flags) for dtype in (F32, BF16, F16) for flags in ((True, False), (False, True))),
    *(
        screen(dtype, flag, products)
        for flag in (False, True)
        for dtype, products in (
            (BF16, "bfloat16"), (F16, "float16"), (F32, "tf32x3"), (F32, "bfloat16"), (F32, "float32"),
        )
    ),
    *(update(dtype, width) for dtype in (F32, BF16, F16) for width in (1, 1024, LARGEST_WIDTH)),
    *(statistics(dtype, flag) for dtype in (F32, BF16, F16) for flag in (False, True)),
    (logit_stats._merge_spans_kernel,
     {"parts": F32, "largest": F32, "margin": F32, "entropy": F32, "first_bad": I64, "count": "i32", "spans": "i32"},
     {"BLOCK": logit_stats.BLOCK_MERGED}),
    (update_argmax._farthest_kernel, {"best": F64, "where": I64, "farthest": I64, "programs": "i32"}, {"BLOCK": 1024}),
    *(
        (pick_block._sqdist_kernel,
         {"members": F32, "others": F32, "out": F64, "dim": "i32", "num_others": "i32"},
         {"OTHERS": rows_of(width), "WIDTH": width}, EXACT)
        for width in (1, 1024, LARGEST_WIDTH)
    ),
    *(
        (pick_block._pick_block_kernel,
         {"nearest": F64, "between": F64, "floor": F64, "max_picks": "i32", "picks": I64, "sqdist": F64, "found": I32,
          "num_rows": "i32"},
         {"BLOCK": block})
        for block in (256, 512, 4096)
    ),
]  # fmt: skip


def spills(ptx: str, capability: int) -> tuple[int, int]:
    """Bytes spilled and registers, as ptxas reports them."""
    architecture = next(line.split()[1] for line in ptx.splitlines() if line.startswith(".target"))
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        done = subprocess.run(
            [get_ptxas(capability).path, "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    words = done.stderr.replace(",", " ").split()
    before = [int(words[i - 3]) for i, word in enumerate(words) if word == "stores" and words[i - 1] == "spill"]
    registers = [int(words[i - 1]) for i, word in enumerate(words) if word == "registers"]
    return sum(before), max(registers)


def main() -> None:
    for kernel, signature, constants, *launch in CONFIGURATIONS:
        names = dict.fromkeys(constants, "constexpr")
        for capability in CAPABILITIES:
            source = ASTSource(fn=kernel, signature=signature | names, constexprs=constants)
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(*launch))
            spilled, registers = spills(compiled.asm["ptx"], capability)
            line = {"kernel": kernel.__name__, "sm": capability, "spilled": spilled, "registers": registers}
            print(json.dumps(line | {"constants": constants, "types": list(signature.values())}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
