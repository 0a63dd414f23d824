"""StepRow version 1 as a numpy dtype: one row of a sampler's table (kernels/step.h is its manual). numpy only."""

from __future__ import annotations

import numpy as np

# Flags, kernels/step.h `StepFlag`.
PUSH, KEEP, CLIP, THRESHOLD, RESCALE, LEARNED_VAR, LEARNED_RANGE = (1 << i for i in range(7))
GRAD, BLEND, NORM, VLB, NO_EVAL, LAST = (1 << i for i in range(7, 13))

#: 256 bytes, little endian. wx weighs x, e, x0, h1, h2, h3, y, z; wy the first seven; wh the first three.
ROW = np.dtype(
    [
        ("flags", "<u4"),
        ("t", "<f4"),
        ("t2", "<f4"),
        ("gs", "<f4"),
        ("noise_index", "<u4"),
        ("c_in", "<f4"),
        ("p", "<f4"),
        ("q", "<f4"),
        ("clip_lo", "<f4"),
        ("clip_hi", "<f4"),
        ("threshold_p", "<f4"),
        ("threshold_cap", "<f4"),
        ("phi", "<f4"),
        ("ge", "<f4"),
        ("gm", "<f4"),
        ("snr", "<f4"),
        ("log_var_lo", "<f4"),
        ("log_var_hi", "<f4"),
        ("ky", "<f4"),
        ("kz", "<f4"),
        ("wx", "<f4", (8,)),
        ("wy", "<f4", (7,)),
        ("wh", "<f4", (3,)),
        ("vx", "<f4"),
        ("v0", "<f4"),
        ("lq", "<f4"),
        ("lp", "<f4"),
        ("spare", "<u4", (22,)),
    ]
)

#: The same fields before rounding: float64 where ROW has float32.
ROW64 = np.dtype([(n, "<f8", ROW[n].shape) if ROW[n].base == "<f4" else (n, ROW[n]) for n in ROW.names])
