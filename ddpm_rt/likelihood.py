"""How likely a plan's model finds given images, in bits per dimension: `Engine.bits_per_dim`.

| name          | meaning                                                        |
|---------------|----------------------------------------------------------------|
| alpha, sigma  | x_t = alpha x_0 + sigma eps, alpha^2 + sigma^2 = 1             |
| prior         | L_T, or the density of the noise that an image flows to        |
| D             | numbers in an image; every figure is divided by D ln 2         |

Sources: Ho et al. 2020 (2006.11239) eq. 5, 7, 13; Nichol & Dhariwal 2021 (2102.09672) eq. 15; Song et al. 2021
(2011.13456) eq. 39 and appendix D.2. Sums are float64; states and the network's outputs are the engine's own float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arrays, call
from .errors import OptionError, ShapeError
from .evaluations import Evaluations

if TYPE_CHECKING:
    from .engine import Engine

METHODS = ("vlb", "ode")
PROBES = ("rademacher", "gaussian")
DEFAULT_ODE_STEPS = 50
_OFF_LEVEL = 0.01  # of the step between two 8-bit levels: what float32 makes of k / 127.5 - 1 is far below


@dataclasses.dataclass(frozen=True)
class VariationalBound:
    """-log2 p(x) <= total, in bits per dimension; arrays float64, one row per image.

    total [n] = terms.sum(1) + prior. terms [n, K]: column k belongs to timesteps[k], noise growing; column 0 is L_0
    (the decoder), the others are KL(q(x_{t-1} | x_t, x_0) | p). prior [n]: L_T. mse [n, K] of eps and xstart_mse [n, K]
    of x_0, means over the image in the data's own units. seeds [n], labels [n] (-1 unconditional); nfe: network
    evaluations of one image.
    """

    total: np.ndarray
    terms: np.ndarray
    prior: np.ndarray
    timesteps: np.ndarray
    mse: np.ndarray
    xstart_mse: np.ndarray
    seeds: np.ndarray
    labels: np.ndarray
    nfe: int

    @property
    def decoder(self) -> np.ndarray:
        """[n]: L_0, -log2 of the discretised Gaussian of DDPM eq. 13."""
        return self.terms[:, 0]


@dataclasses.dataclass(frozen=True)
class FlowLikelihood:
    """-log2 p(x) of the probability flow, in bits per dimension; float64 [n].

    total = prior + change + offset. prior: of the noise x flows to; change: minus the integral of the flow's
    divergence; offset: log2 of the number of 8-bit levels per unit of the data, 7 for data in [-1, 1], 0 for floats.
    """

    total: np.ndarray
    prior: np.ndarray
    change: np.ndarray
    offset: float
    seeds: np.ndarray
    labels: np.ndarray
    nfe: int


@dataclasses.dataclass(frozen=True)
class Asked:
    """x0 float32 [n, *shape] in the data's range; levels uint8 like x0, None for floats of the ODE."""

    x0: np.ndarray
    levels: np.ndarray | None
    range: tuple[float, float]


def bits_per_dim(
    self: Engine,
    images: Any,
    *,
    labels: Any = None,
    method: str = "vlb",
    steps: int | None = None,
    variance: str | None = None,
    clip: bool | None = None,
    probe: str | None = None,
    probes: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    progress: bool | None = None,
) -> VariationalBound | FlowLikelihood:
    """How likely the model finds n images, in bits per dimension, by unguided evaluations of its own network.

    Args:
        images: uint8 [n, H, W, C], or float32 [n, *shape]. "vlb" takes 8-bit levels of the data's range alone.
        labels: a class number or name, repeated; or n of them. None, -1: unconditional.
        method: "vlb", the variational bound of a discrete plan of images (2006.11239 eq. 5): a `VariationalBound`.
            "ode", the density of the probability flow (2011.13456 eq. 39): a `FlowLikelihood`. uint8 images are then
            dequantised.
        steps: vlb: of the chain, 2 to T (the default), spaced as improved-diffusion's (2102.09672 section 4). ode:
            Heun's steps, default 50, two evaluations of the flow each, 1 + 2 probes of the network per evaluation.
        variance: of the reverse process, "fixed_small", "fixed_large" or the network's own; None: the network's, else
            the plan's.
        clip: x0 is clamped to the data range before the posterior mean, as in improved-diffusion. None: True.
        probe: "rademacher" (the default) or "gaussian": of the divergence's estimate, by central differences in
            float32.
        probes: averaged per evaluation, the same along an image's whole way. None: 1.
        seed: image i uses seed + i mod 2^64 for its noise, probes and dequantisation. None: a fresh one, in the
            result's `.seeds`.
        seeds: one per image, instead of seed. The same seed gives an image the same bits in any batch.

    Raises:
        ShapeError, OptionError: before anything runs. NumericError, BackendError, DeviceError.
    """
    one_of(method, "method", METHODS)
    own = {"vlb": {"variance": variance, "clip": clip}, "ode": {"probe": probe, "probes": probes}}
    for other in (m for m in METHODS if m != method):
        for name, value in own[other].items():
            if value is not None:
                raise OptionError(f"{name}: expected it unset with method {method!r}, got {value!r}")
    model = self._model
    x0, levels = read_images(images, model, method)
    given = call.labels_of(-1 if labels is None else labels, len(x0), model.class_names)
    given = np.broadcast_to(given, len(x0)).copy()
    if method == "vlb":
        from .likelihood_bound import variational_bound as run
    else:
        from .likelihood_flow import flow_likelihood as run
    with Evaluations(self, given, seeds_of(seed, seeds, len(x0)), progress) as evaluations:
        return run(evaluations, Asked(x0, levels, model.range), steps=steps, **own[method])


def one_of(value: Any, field: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise OptionError(f"{field}: expected one of {', '.join(known)}, got {value!r}")
    return value


def seeds_of(seed: Any, seeds: Any, n: int) -> np.ndarray:
    """uint64 [n]: seed + i mod 2^64, or one per image; fresh ones where neither is given."""
    if seed is not None and seeds is not None:
        raise OptionError("seed: expected either seed or seeds, got both")
    if seeds is not None:
        return call.seeds_of(seeds, n)
    first = (
        np.random.SeedSequence().generate_state(1, np.uint64)[0]
        if seed is None
        else arrays.integer(seed, "seed", 0, 2**64 - 1)
    )
    return arrays.consecutive_seeds(int(first), n)


def read_images(images: Any, model: call.Model, method: str) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 [n, H, W, C] or float32 [n, *shape] -> float32 [n, *shape], uint8 like it (or None)."""
    is_image = model.role == "image" and len(model.shape) == 3
    if method == "vlb" and not is_image:
        raise OptionError(
            f"method: expected 'ode' for samples of role {model.role} and shape {list(model.shape)}, got 'vlb': its decoder "
            "(DDPM eq. 13) is of 8-bit images"
        )
    array = np.asarray(arrays.view(images, "images"))
    pixels = (*model.shape[1:], model.shape[0]) if is_image else None
    wanted = f"float32 [n, {', '.join(map(str, model.shape))}]"
    if pixels is not None:
        wanted = f"uint8 [n, {', '.join(map(str, pixels))}] or {wanted}"
    is_uint8 = array.dtype == np.uint8 and pixels is not None and array.shape[1:] == pixels
    is_float = array.dtype == np.float32 and array.shape[1:] == model.shape
    if array.ndim == 0 or not (is_uint8 or is_float):
        raise ShapeError(f"images: expected {wanted}, got {array.dtype} {list(array.shape)}")
    if len(array) == 0:
        raise ShapeError("images: expected at least 1, got 0")
    low, high = model.range
    if is_uint8:
        levels = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        return (low + levels * ((high - low) / 255)).astype(np.float32), levels
    if not np.isfinite(array).all():
        raise OptionError("images: expected finite values, got others")
    if method == "ode":
        return np.ascontiguousarray(array), None
    return np.ascontiguousarray(array), levels_of(array, low, high)


def levels_of(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """The 8-bit levels low + k (high - low) / 255 that floats stand for.  -> uint8 like x"""
    scaled = (x.astype(np.float64) - low) * (255 / (high - low))
    nearest = np.rint(scaled)
    if nearest.min() < 0 or nearest.max() > 255:
        raise OptionError(f"images: expected values in [{low:g}, {high:g}], got {x.min():g} to {x.max():g}")
    off = np.abs(scaled - nearest)
    if off.max() > _OFF_LEVEL:
        raise OptionError(
            f"images: expected 8-bit levels {low:g} + k {high - low:g} / 255, got {x.flat[off.argmax()]:g}: the bound is of "
            "8-bit images; method='ode' takes any floats"
        )
    return nearest.astype(np.uint8)


def normals(seeds: np.ndarray, index: int, shape: tuple[int, ...], stream: int) -> np.ndarray:
    """The engine's own noise of each image (`ddpm_rt.noise`).  -> float32 [n, *shape]"""
    from .kernels import noise

    return np.stack([noise(int(seed), index, shape, stream) for seed in seeds])


def means(values: np.ndarray) -> np.ndarray:
    """Of each image by itself, so that its sum has one order whatever the batch.  [n, ...] -> float64 [n]"""
    return np.array([np.ascontiguousarray(v, np.float64).mean() for v in values])


normal_cdf = np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), otypes=[np.float64])
