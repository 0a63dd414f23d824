"""Every sampler as a plain loop that calls the network and updates x, written from the papers: the oracle of the compiled rows.

A loop is told `denoise` (x, level) -> (x0, eps), the levels (n visited and the end), the first state x, and `noise`, row ->
standard normal. Rows are counted as the engine counts them: one for each evaluation, plus one where noise is added before the
first. `native` loops keep x in the network's own space; `unit` loops keep x / alpha (Karras et al.'s space), and flows
always stay in their own.

DDPM and DDIM in the discrete notation of their papers are in `samplers`; here they appear for any level.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from .levels import Level

_LEGENDRE = [(float(u), float(w)) for u, w in zip(*np.polynomial.legendre.leggauss(48))]

Denoise = Callable[[Tensor, Level], tuple[Tensor, Tensor]]
Noise = Callable[[int], Tensor]


def _add(x: Tensor, std: float, noise: Noise, row: int) -> Tensor:
    return x + std * noise(row) if std > 0 else x


def ddpm(
    denoise: Denoise, levels: Sequence[Level], x: Tensor, noise: Noise, *, variance: str = "fixed_small", read=None
):
    """Ancestral sampling: q(x_to | x_from, x0) of the forward process between the two levels (DDPM eq. 6, 7).

    read() -> the network's variance half [-1, 1] or log variance, for variance learned_range or learned.
    """
    for row, (a, b) in enumerate(itertools.pairwise(levels)):
        x0, _ = denoise(x, a)
        if b.sigma == 0:
            x = b.alpha * x0
            continue
        ratio = a.alpha / b.alpha  # x_from = ratio x_to + sqrt(beta) noise
        beta = a.sigma**2 - ratio**2 * b.sigma**2
        small = beta * b.sigma**2 / a.sigma**2
        mean = (ratio * b.sigma**2 * x + b.alpha * beta * x0) / a.sigma**2
        if variance == "learned_range":  # Nichol & Dhariwal eq. 15
            f = (read() + 1) / 2
            std = (0.5 * (f * math.log(beta) + (1 - f) * math.log(small))).exp()
        elif variance == "learned":
            std = (0.5 * read()).exp()
        else:
            std = math.sqrt(beta if variance == "fixed_large" else small)
        x = mean + std * noise(row)
    return x


def ddim(denoise: Denoise, levels: Sequence[Level], x: Tensor, noise: Noise, *, eta: float = 0.0) -> Tensor:
    """Eq. 12 with the sigma of eq. 16 written for alpha^2 + sigma^2 of any value; eta 1 is Euler ancestral where alpha is 1."""
    for row, (a, b) in enumerate(itertools.pairwise(levels)):
        x0, eps = denoise(x, a)
        ratio = a.alpha / b.alpha
        s = eta * b.sigma / a.sigma * math.sqrt(max(0.0, a.sigma**2 - ratio**2 * b.sigma**2))
        x = b.alpha * x0 + (math.sqrt(max(0.0, b.sigma**2 - s**2)) * eps if b.sigma else 0)
        x = _add(x, s, noise, row)
    return x


def pndm(
    denoise: Denoise, levels: Sequence[Level], x: Tensor, noise: Noise, *, model, skip_prk_steps: bool = True
) -> Tensor:
    """Liu et al. 2202.09778: algorithm 2 with an improved Euler start, or algorithm 1 with three Runge-Kutta steps."""

    def transfer(x: Tensor, eps: Tensor, a: Level, b: Level) -> Tensor:  # eq. 11
        return b.alpha / a.alpha * (x - a.sigma * eps) + b.sigma * eps

    past: list[Tensor] = []
    for i, (a, b) in enumerate(itertools.pairwise(levels)):
        _, eps = denoise(x, a)
        if not skip_prk_steps and i < 3:
            half = (a.t - b.t) / 2
            middle = model.at(a.t - (half if not hasattr(model, "alpha_bar") else half // 1))
            _, eps2 = denoise(transfer(x, eps, a, middle), middle)
            _, eps3 = denoise(transfer(x, eps2, a, middle), middle)
            _, eps4 = denoise(transfer(x, eps3, a, b), b)
            x = transfer(x, (eps + 2 * eps2 + 2 * eps3 + eps4) / 6, a, b)  # eq. 12
        elif skip_prk_steps and i == 0 and len(levels) > 2:
            _, ahead = denoise(transfer(x, eps, a, b), b)
            x = transfer(x, (eps + ahead) / 2, a, b)
        else:
            terms = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
            known = [eps, *past[::-1]][:4]
            x = transfer(x, sum(w * e for w, e in zip(terms[len(known) - 1], known)), a, b)
        past.append(eps)
    return x


def _effective_order(order: int, i: int, levels: Sequence[Level], lower_order_final: bool, euler_at_final: bool) -> int:
    n = len(levels) - 1
    order = min(order, i + 1 - (levels[0].alpha == 0))
    if lower_order_final and n < 15:
        order = min(order, n - i)
    if levels[i + 1].sigma == 0 or (euler_at_final and i == n - 1):
        order = 1
    return max(1, order)


def _integral(f: Callable[[float], float], low: float, high: float) -> float:
    """Gauss-Legendre with 48 nodes: what the papers write as integrals, without closed forms."""
    middle, half = (high + low) / 2, (high - low) / 2
    return half * math.fsum(w * f(middle + half * u) for u, w in _LEGENDRE)


def dpmpp_multistep(
    denoise: Denoise,
    levels: Sequence[Level],
    x: Tensor,
    noise: Noise,
    *,
    order: int = 2,
    eta: float = 0.0,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Tensor:
    """Lu et al. 2211.01095 algorithm 2, appendix B; with eta the SDE form in k-diffusion's time h (1 + eta)."""
    past: list[Tensor] = []
    for i, (a, b) in enumerate(itertools.pairwise(levels)):
        m0, _ = denoise(x, a)
        if b.sigma == 0:
            x = b.alpha * m0
            continue
        h = b.log_snr - a.log_snr
        g = h * (1 + eta)
        p = _effective_order(order, i, levels, lower_order_final, euler_at_final)
        x = b.sigma / a.sigma * (math.exp(-eta * h) if eta else 1.0) * x - b.alpha * math.expm1(-g) * m0
        # integral of e^(u - g) (u / g)^k over [0, g]: what a Taylor term of x0 contributes
        first = g * _integral(lambda u, g=g: math.exp(g * (u - 1)) * u, 0, 1) if math.isfinite(g) else 0.0
        second = g * _integral(lambda u, g=g: math.exp(g * (u - 1)) * u**2, 0, 1) if math.isfinite(g) else 0.0
        if p == 2:
            r = (a.log_snr - levels[i - 1].log_snr) / h
            d = (m0 - past[-1]) / r
            x = x + b.alpha * (first if solver_type == "heun" else -math.expm1(-g) / 2) * d
        elif p == 3:
            r0 = (a.log_snr - levels[i - 1].log_snr) / h
            r1 = (levels[i - 1].log_snr - levels[i - 2].log_snr) / h
            d10, d11 = (m0 - past[-1]) / r0, (past[-1] - past[-2]) / r1
            d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
            d2 = (d10 - d11) / (r0 + r1)  # m0 + d1 u + d2 u^2 meets m1 and m2
            x = x + b.alpha * (first * d1 + second * d2)
        x = _add(x, b.sigma * math.sqrt(-math.expm1(-2 * eta * h)) if eta else 0.0, noise, i)
        past.append(m0)
    return x


def dpmpp_2s(
    denoise: Denoise,
    levels: Sequence[Level],
    x: Tensor,
    noise: Noise,
    *,
    model,
    eta: float = 0.0,
    solver_type: str = "midpoint",
) -> Tensor:
    """Lu et al. 2211.01095 algorithm 1 with r = 1/2; eta as in k-diffusion's 2S ancestral."""
    row = 0
    for a, b in itertools.pairwise(levels):
        x0, eps = denoise(x, a)
        row += 1
        if b.sigma == 0:
            x = b.alpha * x0
            continue
        if a.alpha == 0:  # no middle: a DDIM step
            x = _add(b.alpha * x0 + b.sigma * math.sqrt(1 - eta**2) * eps, eta * b.sigma, noise, row - 1)
            continue
        up = eta * b.sigma * math.sqrt(1 - (b.sigma * a.alpha / (b.alpha * a.sigma)) ** 2)
        down = Level(b.alpha, math.sqrt(b.sigma**2 - up**2), b.t)
        h = down.log_snr - a.log_snr
        s = model.at_rel(math.exp(-(a.log_snr + h / 2)))
        u = s.sigma / a.sigma * x - s.alpha * math.expm1(-h / 2) * x0
        ahead, _ = denoise(u, s)
        if solver_type == "heun":
            d = 2 * (ahead - x0)
            first = h * _integral(lambda v, h=h: math.exp(h * (v - 1)) * v, 0, 1)
            x = down.sigma / a.sigma * x - b.alpha * math.expm1(-h) * x0 + b.alpha * first * d
        else:
            x = down.sigma / a.sigma * x - b.alpha * math.expm1(-h) * ahead
        x = _add(x, up, noise, row)
        row += 1
    return x


def unipc(
    denoise: Denoise,
    levels: Sequence[Level],
    x: Tensor,
    noise: Noise,
    *,
    order: int = 2,
    solver_type: str = "bh1",
    lower_order_final: bool = True,
) -> Tensor:
    """Zhao et al. 2302.04867 algorithms 1 and 2 with data prediction: predict, evaluate, correct with that evaluation."""

    def phi(k: int, z: float) -> float:  # phi_k(z) = integral of e^((1 - u) z) u^(k-1) / (k-1)! over [0, 1]
        return _integral(lambda u: math.exp((1 - u) * z) * u ** (k - 1), 0, 1) / math.factorial(k - 1)

    def combine(i: int, ms: list[Tensor], r: list[float], corrects: bool) -> Tensor:
        """sum of rho_k (m_k - m_0) / r_k, B(h) included."""
        a, b = levels[i], levels[i + 1]
        hh = a.log_snr - b.log_snr
        B = hh if solver_type == "bh1" else math.expm1(hh)
        n = len(r)
        if n == 0:
            return 0.0 * ms[0]
        if (corrects and n == 1) or (not corrects and n == 1):
            rho = [0.5]
        else:
            R = np.array([[v**j for v in r] for j in range(n)])
            target = [math.factorial(j + 1) * hh * phi(j + 2, hh) / B for j in range(n)]
            rho = np.linalg.solve(R, target)
        return B * sum(w * (m - ms[0]) / v for w, m, v in zip(rho, ms[1:], r))

    n = len(levels) - 1
    past: list[Tensor] = []  # m of the visited levels
    corrected, used = x, 0
    for i in range(n):
        a, b = levels[i], levels[i + 1]
        m, _ = denoise(x, a)
        if i > 0 and levels[i - 1].alpha > 0:
            before = levels[i - 1]
            h = a.log_snr - before.log_snr
            r = [(levels[i - 1 - k].log_snr - before.log_snr) / h for k in range(1, used)] + [1.0]
            ms = [past[-1], *past[-2 : -used - 1 : -1], m]
            base = a.sigma / before.sigma * corrected - a.alpha * math.expm1(-h) * past[-1]
            x = base - a.alpha * combine(i - 1, ms, r, True)
        corrected = x
        past.append(m)
        used = min(order, i + 1 - (levels[0].alpha == 0))
        if lower_order_final:
            used = min(used, n - i)
        used = 1 if b.sigma == 0 else max(1, used)
        if b.sigma == 0:
            x = b.alpha * m
            continue
        h = b.log_snr - a.log_snr
        r = [(levels[i - k].log_snr - a.log_snr) / h for k in range(1, used)]
        ms = [m, *past[-2 : -used - 1 : -1]]
        x = b.sigma / a.sigma * corrected - b.alpha * math.expm1(-h) * m - b.alpha * combine(i, ms, r, False)
    return x


def lms(
    denoise: Denoise, levels: Sequence[Level], x: Tensor, noise: Noise, *, order: int = 4, is_flow: bool = False
) -> Tensor:
    """Linear multistep: the Lagrange polynomial through the last derivatives, integrated over sigma."""
    past: list[Tensor] = []
    for i, (a, b) in enumerate(itertools.pairwise(levels)):
        x0, eps = denoise(x, a)
        past.append(eps - x0 if is_flow else eps)
        p = min(order, len(past))
        nodes = [levels[i - j].sigma for j in range(p)]
        for j in range(p):
            others = [v for k, v in enumerate(nodes) if k != j]

            def basis(v: float, j=j, others=others, nodes=nodes) -> float:
                return math.prod((v - o) / (nodes[j] - o) for o in others)

            x = x + _integral(basis, a.sigma, b.sigma) * past[-1 - j]
    return x


def deis(
    denoise: Denoise,
    levels: Sequence[Level],
    x: Tensor,
    noise: Noise,
    *,
    order: int = 2,
    lower_order_final: bool = True,
) -> Tensor:
    """Zhang & Chen 2204.13902, tAB-DEIS: x / alpha grows by the integral of eps over rho = sigma / alpha, eps a polynomial in
    log rho."""
    past: list[Tensor] = []
    for i, (a, b) in enumerate(itertools.pairwise(levels)):
        x0, eps = denoise(x, a)
        past.append(eps)
        p = _effective_order(order, i, levels, lower_order_final, False)
        if p == 1:
            x = b.alpha * x0 + (b.sigma * eps if b.sigma else 0)
            continue
        nodes = [-levels[i - j].log_snr for j in range(p)]
        total = x / a.alpha
        for j in range(p):
            others = [v for k, v in enumerate(nodes) if k != j]

            def integrand(v: float, j=j, others=others, nodes=nodes) -> float:
                return math.prod((v - o) / (nodes[j] - o) for o in others) * math.exp(v)

            total = total + _integral(integrand, -a.log_snr, -b.log_snr) * past[-1 - j]
        x = b.alpha * total
    return x
