"""Element maths of the row in Triton: step_math.h (the definition) with the same bits, if launched without contraction."""

import triton
import triton.language as tl


@triton.jit
def row_scale(scale, gs):
    return 1.0 + (scale - 1.0) * gs


@triton.jit
def guide(cond, uncond, s_row):
    return uncond + s_row * (cond - uncond)


@triton.jit
def guide_second(e, cond, guide_output, s2):
    return e + s2 * (cond - guide_output)


@triton.jit
def add_weighted(total, weight, operand):
    """One term of a sum that started at +0; one of weight 0 adds +0, whatever the operand is."""
    return total + weight * tl.where(weight != 0.0, operand, 0.0)


@triton.jit
def clip(value, lo, hi):
    raised = tl.where(lo > value, lo, value)  # NaN passes: the comparisons are false
    return tl.where(hi < raised, hi, raised)


@triton.jit
def blend(m, known, z_known, ky, kz, x_new):
    return m * (ky * known + kz * z_known) + (1.0 - m) * x_new


@triton.jit
def exp_f32(value):
    bounded = clip(value, -87.0, 87.0)
    shifted = bounded * 1.44269504 + 12582912.0
    k = shifted - 12582912.0
    r = (bounded - k * 0.693359375) - k * -2.1219444e-4
    poly = r * 1.3950479e-3 + 8.3688822e-3
    poly = poly * r + 4.1666206e-2
    poly = poly * r + 1.6666519e-1
    poly = poly * r + 5.0e-1
    power = ((shifted.to(tl.uint32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    return power * (1.0 + (r + (r * r) * poly))


@triton.jit
def learned_std(v):
    return exp_f32(0.5 * v)


@triton.jit
def learned_range_std(v, log_var_lo, log_var_hi):
    """Nichol & Dhariwal (2102.09672) eq. 15."""
    f = (v + 1.0) * 0.5
    return exp_f32(0.5 * (f * log_var_hi + (1.0 - f) * log_var_lo))
