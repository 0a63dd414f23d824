"""GroupNorm, optional FiLM and SiLU over channels-last memory, in Triton.

Two passes over the same tiles, split over pixels so that one sample alone fills the device: float32 mean and centred sum
of squares of each split, then their union in a fixed order (Chan, Golub & LeVeque 1983), normalisation and
activation. How the work is split depends on the sample's shape alone: the same bits in any batch, at every run.

Bytes per element: 2 reads + 1 write of x's size (6 in float16); the second read of a sample that fits the second-level
cache does not reach memory. A normalisation and an activation by themselves move 3 + 2.
"""

import triton
import triton.language as tl

TILE = 1024  # elements of a tile
LANES = 32  # channels of a tile, unless one group alone has more
MOST_SPLITS = 128
MOST_GROUP_CHANNELS = 4096
WARPS = 4


@triton.jit
def tile_place(program, groups, splits, group_tiles, CG: tl.constexpr, CGP: tl.constexpr, GROUPS: tl.constexpr):
    """(sample, split, first group, channel of each lane, is the lane a channel) of a program"""
    group_tile = program % group_tiles
    split = (program // group_tiles) % splits
    sample = program // (group_tiles * splits)
    first_group = group_tile * GROUPS
    lane = tl.arange(0, GROUPS * CGP)
    if CG == CGP:
        channel = first_group * CG + lane
        is_channel = channel < groups * CG
    else:
        channel = (first_group + lane // CGP) * CG + lane % CGP
        is_channel = (lane % CGP < CG) & (first_group + lane // CGP < groups)
    return sample, split, first_group, channel, is_channel


@triton.jit
def statistics_kernel(
    x_ptr, partial_ptr, pixels, channels, groups, split_pixels, splits, group_tiles,
    CG: tl.constexpr, CGP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    TRIPS: tl.constexpr,
):  # fmt: skip
    """partial [samples, groups, 2, splits]: mean, and sum of squares about it, of each split."""
    sample, split, first_group, channel, is_channel = tile_place(
        tl.program_id(0), groups, splits, group_tiles, CG, CGP, GROUPS
    )
    x_ptr += sample.to(tl.int64) * pixels * channels
    end = tl.minimum((split + 1) * split_pixels, pixels)
    mean = tl.zeros((GROUPS,), tl.float32)
    squares = tl.zeros((GROUPS,), tl.float32)
    count = 0.0
    for trip in range(TRIPS):
        first = split * split_pixels + trip * ROWS
        pixel = first + tl.arange(0, ROWS)
        inside = (pixel < end)[:, None] & is_channel[None, :]
        x = tl.load(x_ptr + pixel[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        tile_count = (tl.minimum(tl.maximum(end - first, 0), ROWS) * CG).to(tl.float32)
        by_group = tl.reshape(x, (ROWS, GROUPS, CGP))
        tile_mean = tl.sum(tl.sum(by_group, axis=2), axis=0) / tl.maximum(tile_count, 1.0)
        centred = tl.where(tl.reshape(inside, (ROWS, GROUPS, CGP)), by_group - tile_mean[None, :, None], 0.0)
        tile_squares = tl.sum(tl.sum(centred * centred, axis=2), axis=0)
        total = count + tile_count
        apart = tile_mean - mean
        mean += apart * (tile_count / total)
        squares += tile_squares + apart * apart * (count * tile_count / total)
        count = total
    group = first_group + tl.arange(0, GROUPS)
    at = (sample.to(tl.int64) * groups + group) * (2 * splits) + split
    tl.store(partial_ptr + at, mean, mask=group < groups)
    tl.store(partial_ptr + at + splits, squares, mask=group < groups)


@triton.jit
def groupnorm_silu_kernel(
    x_ptr, out_ptr, partial_ptr, weight_ptr, bias_ptr, scale_ptr, scale_stride, shift_ptr, shift_stride, eps,
    pixels, channels, groups, split_pixels, splits, group_tiles,
    CG: tl.constexpr, CGP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    TRIPS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    sample, split, first_group, channel, is_channel = tile_place(
        tl.program_id(0), groups, splits, group_tiles, CG, CGP, GROUPS
    )
    group = (first_group + tl.arange(0, GROUPS))[:, None]
    part = tl.arange(0, SPLITS)[None, :]
    is_part = (group < groups) & (part < splits)
    at = (sample.to(tl.int64) * groups + group) * (2 * splits) + part
    means = tl.load(partial_ptr + at, mask=is_part, other=0.0)
    squares = tl.load(partial_ptr + at + splits, mask=is_part, other=0.0)
    counts = tl.where(is_part, tl.minimum(pixels - part * split_pixels, split_pixels) * CG, 0).to(tl.float32)
    total = tl.cast(pixels * CG, tl.float32)
    mean = tl.sum(counts * means, axis=1) / total
    apart = means - mean[:, None]
    variance = tl.sum(squares + counts * apart * apart, axis=1) / total
    rstd = 1.0 / tl.sqrt_rn(variance + eps)

    mean = tl.reshape(tl.broadcast_to(mean[:, None], (GROUPS, CGP)), (GROUPS * CGP,))
    gain = tl.reshape(tl.broadcast_to(rstd[:, None], (GROUPS, CGP)), (GROUPS * CGP,))
    offset = tl.zeros_like(gain)
    if weight_ptr is not None:
        gain *= tl.load(weight_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        offset = tl.load(bias_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        film = 1.0 + tl.load(scale_ptr + sample.to(tl.int64) * scale_stride + channel, mask=is_channel, other=0.0).to(
            tl.float32
        )
        gain *= film
        offset *= film
    if shift_ptr is not None:
        offset += tl.load(shift_ptr + sample.to(tl.int64) * shift_stride + channel, mask=is_channel, other=0.0).to(
            tl.float32
        )

    sample_at = sample.to(tl.int64) * pixels * channels
    end = tl.minimum((split + 1) * split_pixels, pixels)
    for trip in range(TRIPS):
        first = split * split_pixels + trip * ROWS
        pixel = first + tl.arange(0, ROWS)
        inside = (pixel < end)[:, None] & is_channel[None, :]
        offsets = sample_at + pixel[:, None] * channels + channel[None, :]
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        y = (x - mean[None, :]) * gain[None, :] + offset[None, :]
        y = y / (1.0 + tl.exp(-y))
        tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=inside)


def splits_of(pixels: int, channels: int, groups: int) -> tuple[int, int, int, int]:
    """(groups of a tile, pixels of a tile, pixels of a split, splits): of one sample's shape alone.

    A program of the second pass reads 8 bytes of every split of its groups: about as much as its share of a float16 x.
    """
    of_group = channels // groups
    padded = triton.next_power_of_2(of_group)
    tile_groups = max(1, min(LANES // padded, triton.next_power_of_2(groups)))
    tile_pixels = max(1, TILE // (tile_groups * padded))
    least = max(int((4 * pixels / of_group) ** 0.5), triton.cdiv(pixels, MOST_SPLITS))
    split_pixels = triton.cdiv(least, tile_pixels) * tile_pixels
    return tile_groups, tile_pixels, split_pixels, triton.cdiv(pixels, split_pixels)


def launch_groupnorm_silu(
    *, x, out, partial, weight=None, bias=None, scale=None, shift=None, eps, samples, pixels, channels, groups
):
    """out = silu(film(group_norm(x))) on the current stream; x and out [samples, pixels, channels] in memory.

    partial: float32 scratch [samples, groups, 2, splits_of(...)[3]]; weight, bias [channels]; scale, shift [samples,
    channels], each row contiguous. Neither allocates nor synchronises.
    """
    tile_groups, tile_pixels, split_pixels, splits = splits_of(pixels, channels, groups)
    group_tiles = triton.cdiv(groups, tile_groups)
    of_group = channels // groups
    geometry = {"CG": of_group, "CGP": triton.next_power_of_2(of_group), "GROUPS": tile_groups, "ROWS": tile_pixels}
    geometry["TRIPS"] = split_pixels // tile_pixels

    def row_stride(film):
        return 0 if film is None else film.stride(0)

    grid = (samples * splits * group_tiles,)
    sizes = (pixels, channels, groups, split_pixels, splits, group_tiles)
    statistics_kernel[grid](x, partial, *sizes, **geometry, num_warps=WARPS, enable_fp_fusion=True)
    groupnorm_silu_kernel[grid](
        x, out, partial, weight, bias, scale, row_stride(scale), shift, row_stride(shift), eps, *sizes, **geometry, SPLITS=triton.next_power_of_2(splits),
        num_warps=WARPS, enable_fp_fusion=True,
    )  # fmt: skip
