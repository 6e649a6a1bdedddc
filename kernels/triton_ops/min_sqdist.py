"""min_sqdist in Triton: one program per tile of rows computes products, running minimum and certified error."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

FEW_CENTERS = 32  # up to here reading the rows takes most of the time; with more, every tile of centers reads them
ALIGNMENT = 16  # elements; Triton copies 16 bytes at a time if it knows that addresses and sizes are divisible by this


@dataclass(frozen=True)
class Tile:
    """Tile sizes and pipeline stages of a launch."""

    rows: int
    centers: int
    columns: int
    num_stages: int

    def constants(self) -> dict[str, int]:
        return {"BLOCK_ROWS": self.rows, "BLOCK_CENTERS": self.centers, "BLOCK_DIM": self.columns}

    def options(self) -> dict[str, int]:
        return {"num_warps": 8, "num_stages": self.num_stages}


# For few centers and for more. Wider tiles spill registers; more stages exceed the 99 KB of shared memory of sm_86.
# Keyed by the bytes of an element, of the rows or of the products, whichever is wider.
TILES = {
    2: (Tile(64, 32, 64, 3), Tile(128, 256, 32, 4)),
    4: (Tile(64, 32, 16, 4), Tile(128, 128, 16, 4)),
}
UNALIGNED = {  # smaller, because each element has its own address in two registers
    2: (Tile(64, 32, 32, 3), Tile(64, 64, 32, 3)),
    4: (Tile(64, 32, 32, 3), Tile(64, 128, 16, 3)),
}
NO_BAD_ROW = 1 << 62


@dataclass(frozen=True)
class Products:
    """Precision of the products of rows and centers."""

    elements: torch.dtype
    precision: str  # of tl.dot
    summands: int  # products that tl.dot adds for one product of two elements
    roundoff: float  # of one addition in the products' sums


# The matrix units truncate when they align summands, which is a bit or two worse than rounding to nearest. TF32x3 adds
# three products of halves and omits the fourth, 2^-22 of the whole; the 32 in certified_error leaves room for it.
PRODUCTS = {
    "bfloat16": Products(torch.bfloat16, "ieee", 1, 2.0**-22),
    "float16": Products(torch.float16, "ieee", 1, 2.0**-22),
    "tf32x3": Products(torch.float32, "tf32x3", 3, 2.0**-22),
    "float32": Products(torch.float32, "ieee", 1, 2.0**-24),
}
# The most accurate products that the matrix units have for a dtype; with few centers they take less time than reading.
PRODUCTS_OF = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "tf32x3"}


@triton.jit
def norm_above(sum_of_squares, dim):
    """Upper bounds [ROWS] float64 of norms from their float32 sums of squares, as in csrc/cpu/centered.h."""
    return 1.005 * tl.sqrt(sum_of_squares.to(tl.float64) + dim * 2.0**-125)


@triton.jit
def certified_error(
    norm, rounding_norm, center_norm, center_rounding, dim, SUMMANDS: tl.constexpr, ROUNDOFF: tl.constexpr
):
    """Upper bounds of the error of approximate squared distances, [ROWS] float64; csrc/cpu/centered.h derives them.

    SUMMANDS, ROUNDOFF: see Products.
    """
    reach = norm + center_norm
    sums = (SUMMANDS * dim + 32.0) * ROUNDOFF * reach * reach
    elements = 2.0 * (rounding_norm * center_norm + (norm + rounding_norm) * center_rounding)
    error = 1.02 * (sums + elements) + dim * 2.0**-124 * (1.0 + reach)
    return tl.where(reach < 2.0**63, error, float("inf"))  # float32 sums may overflow


@triton.jit(do_not_specialize=["count", "num_centers"])  # they change from call to call, and no address depends on them
def _min_sqdist_kernel(
    x,
    indices,
    centers,
    center_sqnorm,
    center_norms,
    offset,
    bound,
    first_bad,
    count,
    dim,
    num_centers,
    stride_row,
    HAS_INDICES: tl.constexpr,
    PRECISION: tl.constexpr,
    SUMMANDS: tl.constexpr,
    ROUNDOFF: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CENTERS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BLOCK_ROWS]
    in_rows = index < count
    # Indices beyond the last row or center read the last one again: a two-dimensional mask would cost registers.
    row = tl.minimum(index, count - 1)
    if HAS_INDICES:
        row = tl.load(indices + row)
    rows_at = x + row[:, None] * stride_row
    padded = tl.cdiv(dim, BLOCK_DIM) * BLOCK_DIM  # columns of the centers and the offset, which are read without a mask
    nearest = tl.full((BLOCK_ROWS,), float("inf"), dtype=tl.float32)
    sqnorm = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    rounding_sqnorm = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    nonfinite = tl.zeros((BLOCK_ROWS,), dtype=tl.int32)
    for first in range(0, num_centers, BLOCK_CENTERS):
        center = first + tl.arange(0, BLOCK_CENTERS)  # [BLOCK_CENTERS]
        centers_at = centers + tl.minimum(center, num_centers - 1)[None, :].to(tl.int64) * padded
        products = tl.zeros((BLOCK_ROWS, BLOCK_CENTERS), dtype=tl.float32)
        for start in range(0, dim, BLOCK_DIM):
            column = start + tl.arange(0, BLOCK_DIM)  # [BLOCK_DIM]
            in_dim = column < dim
            stored = tl.load(rows_at + column[None, :], mask=in_dim[None, :], other=0.0).to(tl.float32)
            shift = tl.load(offset + column)
            values = stored - shift[None, :]  # [BLOCK_ROWS, BLOCK_DIM], zero beyond the last column
            elements = values.to(centers.dtype.element_ty)
            if first == 0:
                residual = values - elements.to(tl.float32)
                sqnorm += tl.sum(values * values, axis=1)
                rounding_sqnorm += tl.sum(residual * residual, axis=1)
                nonfinite = tl.maximum(nonfinite, tl.max((stored - stored != 0.0).to(tl.int32), axis=1))
            other = tl.load(centers_at + column[:, None])  # [BLOCK_DIM, BLOCK_CENTERS]
            if WIDEN:
                products = tl.dot(elements.to(tl.float32), other.to(tl.float32), products)
            else:
                products = tl.dot(elements, other, products, input_precision=PRECISION)
        own = tl.load(center_sqnorm + center, mask=center < num_centers, other=float("inf"))
        nearest = tl.minimum(nearest, tl.min(own[None, :] - 2.0 * products, axis=1))
    width = tl.full((BLOCK_ROWS,), 1.0, dtype=tl.float64) * dim
    error = certified_error(
        norm_above(sqnorm, width),
        norm_above(rounding_sqnorm, width),
        tl.load(center_norms),
        tl.load(center_norms + 1),
        width,
        SUMMANDS,
        ROUNDOFF,
    )
    upper = (sqnorm.to(tl.float64) + nearest.to(tl.float64) + error).to(tl.float32)
    before = tl.load(bound + row, mask=in_rows, other=0.0)
    tl.store(bound + row, upper, mask=in_rows & (upper < before))  # false for NaN
    tl.atomic_min(first_bad, tl.min(tl.where(in_rows & (nonfinite != 0), row, 1 << 62), axis=0))


def centered_centers(
    centers: torch.Tensor, offset: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centers minus the offset in `dtype` [M, D], squared norms [M], and the largest norm and rounding norm [2]."""
    centered = centers - offset
    elements = centered.to(dtype)
    sqnorm = centered.square().sum(dim=1)
    rounding_sqnorm = (centered - elements.to(torch.float32)).square().sum(dim=1)
    tiny = centers.shape[1] * 2.0**-125  # covers squares that underflow below float32's normal numbers
    norms = 1.005 * (torch.stack([sqnorm.max(), rounding_sqnorm.max()]).to(torch.float64) + tiny).sqrt()
    return elements, sqnorm, norms


def tile_of(x: torch.Tensor, num_centers: int, elements: torch.dtype) -> Tile:
    """The tile for rows x and products of `elements`."""
    aligned = all(size % ALIGNMENT == 0 for size in (x.data_ptr(), x.shape[1], x.stride(0)))
    few, more = (TILES if aligned else UNALIGNED)[max(x.element_size(), elements.itemsize)]
    return few if num_centers <= FEW_CENTERS else more


def min_sqdist(
    x: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    indices: torch.Tensor | None,
    products: str | None = None,
) -> torch.Tensor:
    """As native.min_sqdist; products: a key of PRODUCTS, None for the one of x's dtype."""
    how = PRODUCTS[products or PRODUCTS_OF[x.dtype]]
    count = len(x) if indices is None else len(indices)
    if count == 0:
        return torch.full((1,), -1, device=x.device)
    tile = tile_of(x, len(centers), how.elements)
    padding = -x.shape[1] % tile.columns
    if padding:
        centers, offset = (torch.nn.functional.pad(tensor, (0, padding)) for tensor in (centers, offset))
    elements, sqnorm, norms = centered_centers(centers, offset, how.elements)
    first_bad = torch.full((1,), NO_BAD_ROW, dtype=torch.int64, device=x.device)
    _min_sqdist_kernel[(triton.cdiv(count, tile.rows),)](
        x,
        x if indices is None else indices,
        elements,
        sqnorm,
        norms,
        offset,
        bound,
        first_bad,
        count,
        x.shape[1],
        len(centers),
        x.stride(0),
        HAS_INDICES=indices is not None,
        PRECISION=how.precision,
        SUMMANDS=how.summands,
        ROUNDOFF=how.roundoff,
        WIDEN=triton.knobs.runtime.interpret,  # Triton's interpreter would multiply bfloat16 as integers
        **tile.constants(),
        **tile.options(),
    )
    return torch.where(first_bad == NO_BAD_ROW, -1, first_bad)
