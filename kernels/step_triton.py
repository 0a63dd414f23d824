"""The sampler step and the guidance combination in Triton: step.h (the manual of the row) with the CPU's bits.

One program executes one row for one tile of one sample. What the row asks for is decided per row: an operand of weight
0 is masked out of its load. Every product and sum rounds to float32 by itself (enable_fp_fusion=False).

Bytes per element, with S for an evaluation and I for a network input (2 in float16 and bfloat16, 4 in float32): read
x 4 + S per evaluation, write x' 4 + I per copy of the input. float16: 12 with one evaluation, 14 guided, 16 guided with
two copies. To these come 4 for each history entry or anchor read, each entry pushed, anchor kept, and x0 shown; S for
a learned variance; 4 for a gradient, 8 for a known image and its mask. Noise moves nothing.
"""

import triton
import triton.language as tl

from .philox_triton import tile_normals
from .step_math_triton import (
    add_weighted,
    blend,
    clip,
    guide,
    guide_second,
    learned_range_std,
    learned_std,
    row_scale,
)

# Words of a row (step.h StepRow); a vector is named by its first word.
FLAGS = tl.constexpr(0)
GS = tl.constexpr(3)
NOISE_INDEX = tl.constexpr(4)
C_IN = tl.constexpr(5)
P = tl.constexpr(6)
Q = tl.constexpr(7)
CLIP_LO = tl.constexpr(8)
CLIP_HI = tl.constexpr(9)
GE = tl.constexpr(13)
GM = tl.constexpr(14)
LOG_VAR_LO = tl.constexpr(16)
LOG_VAR_HI = tl.constexpr(17)
KY = tl.constexpr(18)
KZ = tl.constexpr(19)
WX = tl.constexpr(20)
WY = tl.constexpr(28)
WH = tl.constexpr(35)
ROW_WORDS = tl.constexpr(64)

# step.h StepFlag, those executed here.
PUSH = tl.constexpr(1 << 0)
KEEP = tl.constexpr(1 << 1)
HAS_CLIP = tl.constexpr(1 << 2)
LEARNED_VAR = tl.constexpr(1 << 5)
LEARNED_RANGE = tl.constexpr(1 << 6)
GRAD = tl.constexpr(1 << 7)
BLEND = tl.constexpr(1 << 8)
NO_EVAL = tl.constexpr(1 << 11)
LAST = tl.constexpr(1 << 12)

STREAM_STEP = tl.constexpr(1)
STREAM_KNOWN = tl.constexpr(2)

TILE = 1024  # elements of a program
WARPS = 4


@triton.jit
def row_float(row, word):
    return tl.load(row + word).to(tl.float32, bitcast=True)


@triton.jit
def only_if(condition, inside):
    """inside & condition, a scalar. (The interpreter's & makes integers of it.)"""
    return tl.where(condition, inside, False)


@triton.jit
def read(base, offsets, inside, is_read):
    return tl.load(base + offsets, mask=only_if(is_read, inside), other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["index", "seed", "ring", "samples", "rows"])
def step_kernel(
    x_ptr, out_ptr, cond_ptr, uncond_ptr, guide_ptr, grad_ptr, mask_ptr, known_ptr,
    history_ptr, anchor_ptr, input_ptr, x0_ptr,
    rows_ptr, rows, index_ptr, index, seeds_ptr, seed, scale_ptr, scale, scale2, ring_ptr, ring,
    samples, pixels, tiles, channel_tiles,
    LAYOUT: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    LEARNED: tl.constexpr, DRAWS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """LAYOUT "flat": memory order is logical order, CHANNELS is 1 and a tile [ROWS, 4]. Otherwise channels-last memory
    and a tile of [ROWS pixels, COLUMNS channels]: "pixels by four" where a channel is made of whole counter blocks,
    else "pixels". A pointer that is None is an operand that the call does not have; DRAWS: a row of the table may draw.
    """
    program = tl.program_id(0)
    sample = program // tiles
    tile = program % tiles
    row_index = index
    if index_ptr is not None:
        row_index = tl.load(index_ptr + sample).to(tl.int32)
    row_index = tl.minimum(tl.maximum(row_index, 0), rows - 1)  # nothing is read past the table
    row = rows_ptr + row_index * ROW_WORDS
    flags = tl.load(row + FLAGS)
    key = seed.to(tl.int64) + sample
    if seeds_ptr is not None:
        key = tl.load(seeds_ptr + sample)

    if LAYOUT == "flat":
        first_pixel = tile * (ROWS * COLUMNS)
        first_channel = 0
        offsets = first_pixel + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        inside = offsets < pixels
        e_offsets = offsets
        v_offsets = offsets + pixels
    else:
        first_pixel = (tile // channel_tiles) * ROWS
        first_channel = (tile % channel_tiles) * COLUMNS
        pixel = (first_pixel + tl.arange(0, ROWS))[:, None]
        channel = (first_channel + tl.arange(0, COLUMNS))[None, :]
        offsets = pixel * CHANNELS + channel
        inside = (pixel < pixels) & (channel < CHANNELS)
        e_offsets = offsets
        if LEARNED:
            e_offsets = pixel * (2 * CHANNELS) + channel
        v_offsets = e_offsets + CHANNELS
    elements = tl.cast(pixels, tl.int64) * CHANNELS
    at = sample * elements
    e_at = at
    if LEARNED:
        e_at = 2 * at

    has_e = (flags & NO_EVAL) == 0
    reads_cond = has_e
    if uncond_ptr is not None:
        s = tl.cast(scale, tl.float32)
        if scale_ptr is not None:
            s = tl.load(scale_ptr + sample)
        s_row = row_scale(s, row_float(row, GS))
        # Exactly 1 or 0 is one evaluation alone: u + 1 (c - u) is not c in float32.
        reads_cond = has_e & (s_row != 0.0)
        reads_uncond = has_e & (s_row != 1.0)
    cond = read(cond_ptr + e_at, e_offsets, inside, reads_cond)
    e = cond
    if uncond_ptr is not None:
        uncond = read(uncond_ptr + e_at, e_offsets, inside, reads_uncond)
        e = tl.where(reads_cond, tl.where(reads_uncond, guide(cond, uncond, s_row), cond), uncond)
    if guide_ptr is not None:
        second = read(guide_ptr + e_at, e_offsets, inside, reads_cond)
        e = tl.where(reads_cond, guide_second(e, cond, second, scale2), e)
    if grad_ptr is not None:
        moves_e = has_e & ((flags & GRAD) != 0) & (row_float(row, GE) != 0.0)
        moves_x = ((flags & GRAD) != 0) & (row_float(row, GM) != 0.0)
        grad = read(grad_ptr + at, offsets, inside, moves_e | moves_x)
        e = tl.where(moves_e, e + row_float(row, GE) * grad, e)

    x = tl.load(x_ptr + at + offsets, mask=inside, other=0.0)
    zero = tl.zeros_like(x)
    has_clip = (flags & HAS_CLIP) != 0
    lo = tl.where(has_clip, row_float(row, CLIP_LO), float("-inf"))
    hi = tl.where(has_clip, row_float(row, CLIP_HI), float("inf"))
    x0 = clip(add_weighted(add_weighted(zero, row_float(row, P), x), row_float(row, Q), e), lo, hi)

    x_new = add_weighted(zero, row_float(row, WX), x)
    x_new = add_weighted(x_new, row_float(row, WX + 1), e)
    x_new = add_weighted(x_new, row_float(row, WX + 2), x0)
    if anchor_ptr is not None:
        keeps = (flags & KEEP) != 0
        y_new = add_weighted(zero, row_float(row, WY), x)
        y_new = add_weighted(y_new, row_float(row, WY + 1), e)
        y_new = add_weighted(y_new, row_float(row, WY + 2), x0)
    if history_ptr is not None:
        newest = ring
        if ring_ptr is not None:
            newest = tl.load(ring_ptr + sample)
        for k in tl.static_range(3):
            wx = row_float(row, WX + 3 + k)
            reads_h = wx != 0.0
            if anchor_ptr is not None:
                wy = row_float(row, WY + 3 + k)
                reads_h = reads_h | (keeps & (wy != 0.0))
            entry = history_ptr + (((newest + k) % 3) * tl.cast(samples, tl.int64) * elements + at)
            h = read(entry, offsets, inside, reads_h)
            x_new = add_weighted(x_new, wx, h)
            if anchor_ptr is not None:
                y_new = add_weighted(y_new, wy, h)
    if anchor_ptr is not None:
        wx = row_float(row, WX + 6)
        wy = row_float(row, WY + 6)
        y = read(anchor_ptr + at, offsets, inside, (wx != 0.0) | (keeps & (wy != 0.0)))
        x_new = add_weighted(x_new, wx, y)
        y_new = add_weighted(y_new, wy, y)
    if LEARNED:
        is_direct = (flags & LEARNED_VAR) != 0
        has_std = has_e & (is_direct | ((flags & LEARNED_RANGE) != 0))
        v = read(cond_ptr + e_at, v_offsets, inside, has_std & reads_cond)
        if uncond_ptr is not None:
            v = tl.where(reads_cond, v, read(uncond_ptr + e_at, v_offsets, inside, has_std & (reads_cond == 0)))
        ranged = learned_range_std(v, row_float(row, LOG_VAR_LO), row_float(row, LOG_VAR_HI))
        std = tl.where(has_std, tl.where(is_direct, learned_std(v), ranged), 1.0)
    if DRAWS:
        wz = row_float(row, WX + 7)
        index_of_z = tl.load(row + NOISE_INDEX)
        if wz != 0.0:
            z = tile_normals(key, index_of_z, STREAM_STEP, first_pixel, first_channel, pixels, LAYOUT, ROWS, COLUMNS)
            if LEARNED:
                z = std * z
            x_new = add_weighted(x_new, wz, z)
    if grad_ptr is not None:
        gm = row_float(row, GM)
        if LEARNED:
            x_new = tl.where(moves_x, x_new + (gm * (std * std)) * grad, x_new)
        else:
            x_new = tl.where(moves_x, x_new + gm * grad, x_new)
    if known_ptr is not None:
        ky = row_float(row, KY)
        kz = row_float(row, KZ)
        if (flags & BLEND) != 0:
            z = zero
            if DRAWS:
                index_of_z = tl.load(row + NOISE_INDEX)
                if kz != 0.0:
                    z = tile_normals(
                        key, index_of_z, STREAM_KNOWN, first_pixel, first_channel, pixels, LAYOUT, ROWS, COLUMNS
                    )
            known = read(known_ptr + at, offsets, inside, ky != 0.0)
            m = tl.load(mask_ptr + at + offsets, mask=inside, other=0.0).to(tl.float32)
            x_new = blend(m, known, z, ky, kz, x_new)

    # All reads before any write: a thread may store other elements than it loaded, and PUSH overwrites h3.
    tl.debug_barrier()
    if anchor_ptr is not None:
        tl.store(anchor_ptr + at + offsets, y_new, mask=only_if(keeps, inside))
    if history_ptr is not None:
        pushed = add_weighted(zero, row_float(row, WH), x)
        pushed = add_weighted(pushed, row_float(row, WH + 1), e)
        pushed = add_weighted(pushed, row_float(row, WH + 2), x0)
        oldest = history_ptr + (((newest + 2) % 3) * tl.cast(samples, tl.int64) * elements + at)
        tl.store(oldest + offsets, pushed, mask=only_if((flags & PUSH) != 0, inside))
    tl.store(out_ptr + at + offsets, x_new, mask=inside)
    if x0_ptr is not None:
        tl.store(x0_ptr + at + offsets, x0, mask=inside)
    if input_ptr is not None:
        next_row = rows_ptr + tl.minimum(row_index + 1, rows - 1) * ROW_WORDS
        value = (row_float(next_row, C_IN) * x_new).to(input_ptr.dtype.element_ty)
        for copy in tl.static_range(COPIES):
            copy_at = at + copy * tl.cast(samples, tl.int64) * elements
            tl.store(input_ptr + copy_at + offsets, value, mask=only_if((flags & LAST) == 0, inside))


def launch_step(
    *, x, out, cond, uncond=None, guide=None, grad=None, mask=None, known=None, history=None, anchor=None,
    net_input=None, x0=None, rows, index, seeds, scale, scale2=0.0, ring=0, samples, channels, pixels, is_channels_last,
    is_learned, draws, copies=1,
):  # fmt: skip
    """Executes rows[index[i]] for sample i, on the current stream. Tensors [samples, ...] of one layout, or None.

    rows int32 [table, 64]. index, seeds (int64: the bits of the uint64), scale, ring: one number, or a tensor of one per
    sample (int32 or int64; int64; float32; int32); a seed that is a number counts up. Neither allocates nor synchronises.
    """

    def pointer_and_value(given, otherwise):
        return (given, otherwise) if hasattr(given, "data_ptr") else (None, given)

    if is_channels_last and (draws or is_learned):
        layout = "pixels by four" if pixels % 4 == 0 else "pixels"
        columns = min(triton.next_power_of_2(channels), 64)
        tile_rows = min(TILE // columns, max(4, triton.next_power_of_2(pixels)))
        channel_tiles = triton.cdiv(channels, columns)
        tiles = triton.cdiv(pixels, tile_rows) * channel_tiles
    else:
        layout, columns, channel_tiles = "flat", 4, 1
        channels, pixels = 1, channels * pixels  # with nothing that knows channels, any memory order is flat
        tile_rows = min(TILE // columns, max(1, triton.next_power_of_2(triton.cdiv(pixels, columns))))
        tiles = triton.cdiv(pixels, tile_rows * columns)
    step_kernel[(samples * tiles,)](
        x, out, cond, uncond, guide, grad, mask, known, history, anchor, net_input, x0, rows, rows.shape[0],
        *pointer_and_value(index, 0), *pointer_and_value(seeds, 0), *pointer_and_value(scale, 1.0), scale2,
        *pointer_and_value(ring, 0), samples, pixels, tiles, channel_tiles,
        LAYOUT=layout, CHANNELS=channels, ROWS=tile_rows, COLUMNS=columns, LEARNED=is_learned, DRAWS=draws, COPIES=copies,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def cfg_combine_kernel(cond_ptr, uncond_ptr, out_ptr, scale_ptr, scale, elements, tiles, TILE: tl.constexpr):
    program = tl.program_id(0)
    sample = program // tiles
    offsets = (program % tiles) * TILE + tl.arange(0, TILE)
    inside = offsets < elements
    s = tl.cast(scale, tl.float32)
    if scale_ptr is not None:
        s = tl.load(scale_ptr + sample)
    at = sample.to(tl.int64) * elements
    cond = tl.load(cond_ptr + at + offsets, mask=inside).to(tl.float32)
    uncond = tl.load(uncond_ptr + at + offsets, mask=inside).to(tl.float32)
    tl.store(out_ptr + at + offsets, guide(cond, uncond, s).to(out_ptr.dtype.element_ty), mask=inside)


def launch_cfg_combine(*, cond, uncond, out, scale, samples, elements):
    """out = u + s (c - u) in memory order. scale: a number, or float32 [samples]. Bytes per element: S + S + size of out."""
    tiles = triton.cdiv(elements, TILE)
    scales, number = (scale, 1.0) if hasattr(scale, "data_ptr") else (None, scale)
    cfg_combine_kernel[(samples * tiles,)](
        cond, uncond, out, scales, number, elements, tiles, TILE=TILE, num_warps=WARPS, enable_fp_fusion=False
    )
