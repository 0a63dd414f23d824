"""Random numbers, version 1, in Triton: philox.h (the definition) with the same bits.

Every function here is + - * and sqrt_rn on float32, in philox.h's order. A kernel that calls one is launched with
enable_fp_fusion=False: contraction would change the bits.
"""

import triton
import triton.language as tl


@triton.jit
def log_f32(value):
    bits = value.to(tl.uint32, bitcast=True)
    exponent = (bits - 0x3F3504F3).to(tl.int32, bitcast=True) >> 23
    f = (bits - (exponent.to(tl.uint32, bitcast=True) << 23)).to(tl.float32, bitcast=True) - 1.0
    k = exponent.to(tl.float32)
    f2 = f * f
    p01 = 3.3333331e-1 - 2.5000820e-1 * f
    p23 = 2.0001227e-1 - 1.6623357e-1 * f
    p45 = 1.4201759e-1 - 1.3160183e-1 * f
    p67 = 1.2761575e-1 - 7.634494e-2 * f
    poly = (p01 + p23 * f2) + (p45 + p67 * f2) * (f2 * f2)
    tail = (f * f2) * poly + (k * -2.1219444e-4 - 0.5 * f2)
    return k * 0.693359375 + (f + tail)


@triton.jit
def sinpi_f32(x):
    y = x * x
    poly = y * -5.8901221e-1 + 2.5497611
    poly = poly * y - 5.1677077
    tail = poly * y - 8.7422777e-8
    return x * 3.1415927 + x * tail


@triton.jit
def cospi_f32(x):
    y = x * x
    poly = y * 2.3136423e-1 - 1.3350506
    poly = poly * y + 4.0587076
    poly = poly * y - 4.9348022
    return 1.0 + poly * y


@triton.jit
def normal_pair(a, b):
    """Box-Muller of two uint32 words.  -> two float32"""
    high = (a >> 16).to(tl.int32, bitcast=True).to(tl.float32)
    low = (a & 0xFFFF).to(tl.int32, bitcast=True).to(tl.float32)
    u = (high * 1.52587890625e-5 + low * 2.3283064365386963e-10) + 1.1641532182693481e-10
    r = tl.sqrt_rn(-2.0 * log_f32(u))
    turned = b + 0x20000000
    within = ((turned & 0x3FFFFFFF) - 0x20000000).to(tl.int32, bitcast=True)
    x = within.to(tl.float32) * 4.6566128730773926e-10
    sine = sinpi_f32(x).to(tl.uint32, bitcast=True)
    cosine = cospi_f32(x).to(tl.uint32, bitcast=True)
    # Odd quadrants exchange sine and cosine; the signs follow the quadrant's two bits.
    swap = (sine ^ cosine) & ((turned << 1).to(tl.int32, bitcast=True) >> 31).to(tl.uint32, bitcast=True)
    first = (cosine ^ swap) ^ ((turned ^ (turned << 1)) & 0x80000000)
    second = (sine ^ swap) ^ (turned & 0x80000000)
    return r * first.to(tl.float32, bitcast=True), r * second.to(tl.float32, bitcast=True)


@triton.jit
def block_normals(seed, block, noise_index, stream):
    """The four normals of each counter block.  seed int64 scalar (the bits of the uint64), block int32 tensor"""
    w0, w1, w2, w3 = tl.philox(seed, block, noise_index, stream, block * 0)
    z0, z1 = normal_pair(w0, w1)
    z2, z3 = normal_pair(w2, w3)
    return z0, z1, z2, z3


@triton.jit
def element_normals(seed, element, noise_index, stream):
    """The normal of each element by itself: four times the counters, for elements that do not come in whole blocks."""
    w0, w1, w2, w3 = tl.philox(seed, element >> 2, noise_index, stream, element * 0)
    in_second_pair = (element & 2) != 0
    first, second = normal_pair(tl.where(in_second_pair, w2, w0), tl.where(in_second_pair, w3, w1))
    return tl.where((element & 1) != 0, second, first)


@triton.jit
def tile_normals(
    seed, noise_index, stream, first_pixel, first_channel, pixels,
    LAYOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Normals of a tile, [ROWS, COLUMNS]. An element's number is its logical [C, H, W] index in every layout."""
    if LAYOUT == "flat":
        block = first_pixel // 4 + tl.arange(0, ROWS)
        z0, z1, z2, z3 = block_normals(seed, block, noise_index, stream)
        z = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (ROWS, COLUMNS))
    elif LAYOUT == "pixels by four":
        channel = (first_channel + tl.arange(0, COLUMNS))[None, :]
        block = channel * (pixels // 4) + (first_pixel // 4 + tl.arange(0, ROWS // 4))[:, None]
        z0, z1, z2, z3 = block_normals(seed, block, noise_index, stream)
        by_four = tl.join(tl.join(z0, z2), tl.join(z1, z3))  # [ROWS / 4, COLUMNS, 2, 2]
        z = tl.reshape(tl.permute(by_four, (0, 2, 3, 1)), (ROWS, COLUMNS))
    else:
        channel = (first_channel + tl.arange(0, COLUMNS))[None, :]
        pixel = (first_pixel + tl.arange(0, ROWS))[:, None]
        z = element_normals(seed, channel * pixels + pixel, noise_index, stream)
    return z


@triton.jit(do_not_specialize=["seed", "noise_index", "stream"])
def normals_kernel(out_ptr, seeds_ptr, seed, noise_index, stream, elements, tiles, BLOCKS: tl.constexpr):
    program = tl.program_id(0)
    sample = program // tiles
    if seeds_ptr is None:
        key = seed.to(tl.int64) + sample
    else:
        key = tl.load(seeds_ptr + sample)
    first = (program % tiles) * (4 * BLOCKS)
    z = tile_normals(key, noise_index, stream, first, 0, elements, "flat", BLOCKS, 4)
    element = first + tl.arange(0, BLOCKS)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(out_ptr + sample.to(tl.int64) * elements + element, z, mask=element < elements)


def launch_normals(*, out, seeds, noise_index, stream, samples, elements):
    """out [samples, elements] float32. seeds: a number (it counts up) or int64 [samples], the bits of the uint64."""
    blocks = min(256, triton.next_power_of_2(triton.cdiv(elements, 4)))
    tiles = triton.cdiv(elements, 4 * blocks)
    keys, first = (seeds, 0) if hasattr(seeds, "data_ptr") else (None, seeds)
    normals_kernel[(samples * tiles,)](
        out, keys, first, noise_index, stream, elements, tiles, BLOCKS=blocks, num_warps=4, enable_fp_fusion=False
    )
