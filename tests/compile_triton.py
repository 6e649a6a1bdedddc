"""Compiles every Triton kernel ahead of time, in its shipped configurations: python tests/compile_triton.py

Prints one JSON line for each: kernel, compute capability, specialization, bytes spilled, registers, bytes of shared
memory. Needs no GPU.
"""

import contextlib
import io
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

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
from triton.compiler import ASTSource

CAPABILITIES = (80, 90, 100)
I64, I32, F64, F32, BF16, F16, U8 = "*i64", "*i32", "*fp64", "*fp32", "*bf16", "*fp16", "*u8"
# A launch tells the compiler which addresses and sizes are divisible by 16: usually all are; with only the addresses
# divisible, rows are read an element at a time.
SPECIALIZATIONS = {"all divisible": lambda kind: True, "pointers divisible": lambda kind: kind.startswith("*")}


class Configuration(NamedTuple):
    """A kernel, its arguments' types and constants, and its launch options."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    specializations: tuple[str, ...] = tuple(SPECIALIZATIONS)


POOL = {
    "mask": U8,
    "starts": I64,
    "lengths": I64,
    "prefix_sum": F32,
    "prefix_len": "i32",
    "out": F32,
    "dim": "i32",
    "stride_token": "i32",
}


def pool(dtype, has_mask, has_prefix):
    """masked_mean_pool, padded or packed."""
    sizes = {"BLOCK_TOKENS": masked_mean_pool.BLOCK_TOKENS, "BLOCK_DIM": masked_mean_pool.BLOCK_DIM}
    constants = {"HAS_MASK": has_mask, "HAS_PREFIX": has_prefix, **sizes}
    return Configuration(masked_mean_pool._masked_mean_pool_kernel, {"hidden": dtype, **POOL}, constants, {})


def pool_and_screen(dtype, has_mask, has_prefix):
    """pool_min_sqdist, padded or packed."""
    _, signature, constants, *_ = pool(dtype, has_mask, has_prefix)
    signature |= {
        "centers": F32,
        "center_sqnorm": F32,
        "center_norms": F64,
        "offset": F32,
        "bound": F32,
        "parts": F32,
        "arrived": I32,
        "first_bad": I64,
        "num_centers": "i32",
    }
    constants |= {"CENTERS": pool_min_sqdist.CENTERS}
    return Configuration(pool_min_sqdist._pool_min_sqdist_kernel, signature, constants, {})


def screen(dtype, has_indices, products, more, aligned):
    """min_sqdist, of all rows or of some, for few centers or more."""
    how = min_sqdist.PRODUCTS[products]
    elements = {torch.bfloat16: BF16, torch.float16: F16, torch.float32: F32}[how.elements]
    signature = {
        "x": dtype,
        "indices": I64,
        "centers": elements,
        "center_sqnorm": F32,
        "center_norms": F64,
        "offset": F32,
        "bound": F32,
        "first_bad": I64,
        "count": "i32",
        "dim": "i32",
        "num_centers": "i32",
        "stride_row": "i32",
    }
    size = 4 if dtype == F32 else 2
    tile = (min_sqdist.TILES if aligned else min_sqdist.UNALIGNED)[size][more]
    constants = {
        "HAS_INDICES": has_indices,
        "WIDEN": False,
        "PRECISION": how.precision,
        "SUMMANDS": how.summands,
        "ROUNDOFF": how.roundoff,
        **tile.constants(),
    }
    return Configuration(
        min_sqdist._min_sqdist_kernel,
        signature,
        constants,
        tile.options(),
        ("all divisible" if aligned else "pointers divisible",),
    )


def update(dtype, width):
    """update_argmax for rows of one width."""
    signature = {
        "x": dtype,
        "center": F32,
        "nearest": F64,
        "largest": F64,
        "farthest": I64,
        "count": "i32",
        "dim": "i32",
        "stride_row": "i32",
    }
    constants = {"ROWS": rows_of(width), "WIDTH": width}
    return Configuration(update_argmax._update_argmax_kernel, signature, constants, EXACT)


def statistics(dtype, has_bias):
    """logit_stats of spans of the vocabulary."""
    signature = {
        "hidden": dtype,
        "weight": dtype,
        "bias": F32,
        "parts": F32,
        "count": "i32",
        "vocab": "i32",
        "dim": "i32",
        "stride_hidden": "i32",
        "stride_weight": "i32",
    }
    size = 4 if dtype == F32 else 2
    constants = {"HAS_BIAS": has_bias, "WIDEN": False, "VOCAB_SPAN": logit_stats.VOCAB_SPAN, **logit_stats.BLOCKS[size]}
    return Configuration(logit_stats._logit_stats_kernel, signature, constants, logit_stats.LAUNCH[size])


CONFIGURATIONS = [
    *(pool(dtype, *flags) for dtype in (F32, BF16, F16) for flags in ((True, False), (True, True), (False, False))),
    *(pool_and_screen(dtype, *flags) for dtype in (F32, BF16, F16) for flags in ((True, False), (False, True))),
    *(
        screen(dtype, flag, products, more, aligned)
        for flag in (False, True)
        for more in (False, True)
        for aligned in (False, True)
        for dtype, products in (
            (BF16, "bfloat16"),
            (F16, "float16"),
            (F32, "tf32x3"),
            (F32, "bfloat16"),
            (F32, "float32"),
        )
    ),
    *(update(dtype, width) for dtype in (F32, BF16, F16) for width in (1, 1024, LARGEST_WIDTH)),
    *(statistics(dtype, flag) for dtype in (F32, BF16, F16) for flag in (False, True)),
    Configuration(
        logit_stats._merge_spans_kernel,
        {"parts": F32, "largest": F32, "margin": F32, "entropy": F32, "first_bad": I64, "count": "i32", "spans": "i32"},
        {"BLOCK": logit_stats.BLOCK_MERGED},
        {},
    ),
    Configuration(
        update_argmax._farthest_kernel,
        {"largest": F64, "farthest": I64, "result": I64, "programs": "i32"},
        {"BLOCK": 1024},
        {},
    ),
    *(
        Configuration(
            pick_block._sqdist_kernel,
            {"members": F32, "others": F32, "out": F64, "dim": "i32", "num_others": "i32"},
            {"OTHERS": rows_of(width), "WIDTH": width},
            EXACT,
        )
        for width in (1, 1024, LARGEST_WIDTH)
    ),
    *(
        Configuration(
            pick_block._pick_block_kernel,
            {
                "nearest": F64,
                "between": F64,
                "floor": F64,
                "max_picks": "i32",
                "picks": I64,
                "sqdist": F64,
                "num_picks": I32,
                "num_rows": "i32",
            },
            {"BLOCK": block},
            {},
        )
        for block in (256, 512, 4096)
    ),
]


def compiled(configuration: Configuration, specialization: str, capability: int) -> tuple[str, int]:
    """The log of ptxas, and the bytes of shared memory."""
    kernel, signature, constants, options, _ = configuration
    divisible = SPECIALIZATIONS[specialization]
    source = ASTSource(
        fn=kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={
            (parameter.num,): [["tt.divisibility", 16]]
            for parameter in kernel.params
            if parameter.name in signature
            if not parameter.do_not_specialize and divisible(signature[parameter.name])
        },
    )
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        shared = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared
    return log.getvalue(), shared


def usage(log: str) -> dict[str, int]:
    """Bytes spilled and registers, as ptxas reports them."""
    words = log.replace(",", " ").split()
    spilled = [int(words[i - 3]) for i, word in enumerate(words) if word == "stores" and words[i - 1] == "spill"]
    registers = [int(words[i - 1]) for i, word in enumerate(words) if word == "registers"]
    return {"spilled": sum(spilled), "registers": max(registers)}


def lines(index: int) -> list[str]:
    """The lines to print for one configuration."""
    configuration = CONFIGURATIONS[index]
    shown = {"constants": configuration.constants, "types": list(configuration.signature.values())}
    result = []
    for specialization in configuration.specializations:
        for capability in CAPABILITIES:
            log, shared = compiled(configuration, specialization, capability)
            line = {"kernel": configuration.kernel.__name__, "sm": capability, "specialization": specialization}
            result.append(json.dumps(line | usage(log) | {"shared": shared} | shown))
    return result


def main() -> None:
    triton.knobs.compilation.always_compile = True  # a cached kernel comes without ptxas's report
    triton.knobs.nvidia.dump_ptxas_log = True
    with ProcessPoolExecutor(2) as pool_of_processes:
        for of_one in pool_of_processes.map(lines, range(len(CONFIGURATIONS))):
            print("\n".join(of_one), flush=True)


if __name__ == "__main__":
    sys.exit(main())
