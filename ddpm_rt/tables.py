"""The samplers that the engine has, and tables of one's own."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _core
from .arrays import integer, number
from .errors import OptionError, ShapeError
from .row import ROW


@dataclasses.dataclass(frozen=True)
class SamplerOption:
    """One of `sampler_options=`. type: "int", "float", "bool", "list" or "choice:a|b"; default as text, "" where it depends."""

    name: str
    type: str
    range: str
    default: str
    help: str


@dataclasses.dataclass(frozen=True)
class Grid:
    """How levels are spaced. `discrete_only`: needs integer timesteps; `options`: of `sampler_options=` with this grid."""

    name: str
    discrete_only: bool
    help: str
    options: tuple[SamplerOption, ...]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A solver. `n` steps cost `nfe_first + nfe_each * n` network evaluations with default options.

    order: of convergence, with default options, of the deterministic part; 0: it does not solve an equation.
    default_steps: 0: the schedule's T. default_eta: None: it takes no eta.
    clips: what `clip=` may be beside "none". space: the state is the network's own x ("native") or x / alpha ("unit").
    """

    name: str
    citation: str
    order: int
    nfe_first: int
    nfe_each: int
    default_steps: int
    default_eta: float | None
    default_grid: str
    space: str
    clips: tuple[str, ...]
    options: tuple[SamplerOption, ...]


def _options(listed: list[dict[str, str]]) -> tuple[SamplerOption, ...]:
    return tuple(SamplerOption(**o) for o in listed)


@functools.cache
def _registry() -> tuple[tuple[Sampler, ...], tuple[Grid, ...]]:
    found = json.loads(_core.samplers())
    return (
        tuple(
            Sampler(**{**s, "clips": tuple(s["clips"]), "options": _options(s["options"])}) for s in found["samplers"]
        ),
        tuple(Grid(**{**g, "options": _options(g["options"])}) for g in found["grids"]),
    )


def samplers() -> list[Sampler]:
    """Every sampler: name, options with ranges and defaults, order of convergence, evaluations, citation."""
    return list(_registry()[0])


def grids() -> list[Grid]:
    """Every named grid. `grid=` also takes "ddimN", "fast27" and section counts such as "10,15,20"."""
    return list(_registry()[1])


class Table:
    """Rows of one's own for `Engine.sample(sampler=...)`: one row per tick of one sample, kernels/step.h is the manual.

        rows = ddpm_rt.rows("ddim", 50)
        rows["clip_hi"] = 0.9
        engine.sample(4, sampler=ddpm_rt.Table(rows))

    Args:
        rows: a structured array [n] of `ddpm_rt.row.ROW`, copied.
        init_sigma: x_T = init_sigma * unit noise.

    Raises:
        ShapeError: not such an array. OptionError: a flag without an executor, LAST anywhere but at the end, a value that is
            not finite, history or anchor read before a row wrote it.
    """

    def __init__(self, rows: np.ndarray, init_sigma: float = 1.0) -> None:
        array = np.ascontiguousarray(rows)
        if array.dtype != ROW or array.ndim != 1:
            raise ShapeError(f"rows: expected a table [n] of ROW, got {array.dtype} {list(array.shape)}")
        try:
            self.init_sigma = float(init_sigma)
        except (TypeError, ValueError) as e:
            raise OptionError(f"init_sigma: expected a number, got {init_sigma!r}") from e
        _core.check_rows(array, self.init_sigma)
        self.rows = array.copy()
        self.rows.flags.writeable = False

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<ddpm_rt.Table of {len(self)} rows, init_sigma {self.init_sigma:g}>"


def options_json(options: Mapping[str, Any] | None) -> str | None:
    """`sampler_options` as the extension takes them."""
    if options is None:
        return None
    if isinstance(options, str):
        return options
    if not isinstance(options, Mapping):
        raise OptionError(f"sampler_options: expected a mapping of names and values, got {type(options).__name__}")

    def plain(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else value

    try:
        return json.dumps({str(k): plain(v) for k, v in options.items()}, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise OptionError(
            f"sampler_options: expected finite numbers, texts, bools and lists, got {dict(options)!r}"
        ) from e


def pair(value: Any, field: str, meaning: str) -> tuple[float, float] | None:
    """Two numbers. The engine checks their range."""
    if value is None:
        return None
    try:
        first, second = value
    except (TypeError, ValueError) as e:
        raise OptionError(f"{field}: expected {meaning}, got {value!r}") from e
    return number(first, f"{field}[0]"), number(second, f"{field}[1]")


def solver_options(
    *,
    sampler: str | None,
    steps: int | None,
    eta: float | None,
    clip: str | None,
    variance: str | None,
    grid: str | None,
    compat: str | None,
    sampler_options: Mapping[str, Any] | None,
    guidance_rescale: float | None,
    guidance_interval: tuple[float, float] | None,
    threshold: tuple[float, float] | None,
    classifier_scale: float | None,
) -> dict[str, Any]:
    """What a table is compiled from, as the extension takes it; None is not given."""

    def real(value: Any, field: str) -> float | None:
        return None if value is None else number(value, field)

    def text(value: Any, field: str) -> str | None:
        if value is not None and not isinstance(value, str):
            raise OptionError(f"{field}: expected a text, got {type(value).__name__}")
        return value

    return {
        "sampler": text(sampler, "sampler"),
        "steps": None if steps is None else integer(steps, "steps", 1, 2**31 - 1),
        "eta": real(eta, "eta"),
        "clip": text(clip, "clip"),
        "variance": text(variance, "variance"),
        "grid": text(grid, "grid"),
        "compat": text(compat, "compat"),
        "sampler_options": options_json(sampler_options),
        "guidance_rescale": real(guidance_rescale, "guidance_rescale"),
        "guidance_interval": pair(guidance_interval, "guidance_interval", "(lo, hi), levels sigma / alpha"),
        "threshold": pair(threshold, "threshold", "(p, cap), such as (0.995, 1.5)"),
        "classifier_scale": real(classifier_scale, "classifier_scale"),
    }


def markdown() -> str:
    """The lists of docs/samplers.md: `python -m ddpm_rt.tables` prints them."""
    lines = [
        "| sampler | order | network evaluations of n steps | steps, grid | options | source |",
        "|---|---|---|---|---|---|",
    ]
    for s in samplers():
        each = "n" if s.nfe_each == 1 else f"{s.nfe_each} n"
        count = each if not s.nfe_first else f"{each} {'+' if s.nfe_first > 0 else '-'} {abs(s.nfe_first)}"
        options = [f"`eta` {s.default_eta:g}"] if s.default_eta is not None else []
        options += [f"`{o.name}` {o.default}" for o in s.options]
        lines.append(
            f"| `{s.name}` | {s.order or ''} | {count} | {s.default_steps or 'T'}, {s.default_grid} | {', '.join(options)} | {s.citation} |"
        )
    lines += ["", "| grid | levels | options |", "|---|---|---|"]
    for g in grids():
        where = "; discrete schedules only" if g.discrete_only else ""
        lines.append(f"| `{g.name}` | {g.help}{where} | {', '.join(f'`{o.name}`' for o in g.options)} |")
    lines += ["", "| option | type | range | meaning |", "|---|---|---|---|"]
    seen: dict[str, SamplerOption] = {}
    for owner in (*grids(), *samplers()):
        seen.update({o.name: o for o in owner.options})
    for name, o in sorted(seen.items()):
        kind = o.type.removeprefix("choice:").replace("|", ", ")
        lines.append(f"| `{name}` | {kind} | {o.range} | {o.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
