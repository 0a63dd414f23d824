"""Single evaluations of an engine's network, through the engine: a sample whose table is one row."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from . import _core
from .errors import NumericError
from .kernels import _exact
from .progress import Progress
from .row import LAST, LEARNED_RANGE, LEARNED_VAR, ROW
from .tables import Table, solver_options

if TYPE_CHECKING:
    from .engine import Engine

_E, _Z = 1, 7  # operands of `wx`
_TICKS_AHEAD = 4  # of images that wait in the engine while the caller adds up what is done
_OPTIONS = ("sampler", "steps", "eta", "clip", "variance", "grid", "compat", "sampler_options", "guidance_rescale",
            "guidance_interval", "threshold", "classifier_scale")  # fmt: skip


class Question(NamedTuple):
    """x float32 [m, *shape] at the level of a one-row table, and the image [m] that each belongs to."""

    x: np.ndarray
    table: Table
    image: np.ndarray


class Evaluations:
    """What the engine's network says of states of n images, with labels [n] (-1 unconditional) and seeds [n].

    model: JSON of `ddpm_rt_engine_model`: prediction, variance, time, alpha_bar or schedule, clip_range.
    """

    def __init__(self, engine: Engine, labels: np.ndarray, seeds: np.ndarray, progress: bool | None = None) -> None:
        self.labels, self.seeds = labels, seeds
        self._engine = engine
        self._core = engine._open_core()
        self.model: dict[str, Any] = json.loads(self._core.model())
        self.alpha_bar = np.array(self.model["alpha_bar"], np.float64)
        self.shape = engine._model.shape
        info = engine.info()
        self.precision, self.default_variance = info["precision"], info["defaults"]["variance"]
        self.expected = self._done = 0  # answers, for the progress bar
        self._bar = Progress(progress, engine._model.name)
        self._ahead = _TICKS_AHEAD * info["max_batch"]

    def __enter__(self) -> Self:
        with self._engine._lock:
            self._engine._running += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        with self._engine._lock:
            self._engine._running -= 1
            if self._engine._running == 0:
                self._core.forget_denoiser_error()

    def update(self, row: int, rows: int) -> None:
        """What `Engine._wait` tells a progress bar: of one request; the bar shows all."""
        self._bar.update(self._done, self.expected)

    def rows(
        self, sampler: str, steps: int, *, prediction: str | None = None, **options: Any
    ) -> tuple[np.ndarray, float]:
        """A sampler's table in float64 (`row.ROW64`) on this engine's schedule, and its initial sigma.

        prediction: of another network in the plan's place, whose p and q then say alpha and sigma.
        """
        known = ("alpha_bar", "schedule", "time") if prediction is None else ("alpha_bar", "schedule")
        model = {k: self.model[k] for k in known if k in self.model} | {
            "prediction": prediction or self.model["prediction"]
        }
        given = dict.fromkeys(_OPTIONS) | {"sampler": sampler, "steps": steps, "clip": "none"} | options
        data, init_sigma = _core.rows(self.alpha_bar, json.dumps(model), solver_options(**given), True)
        return _exact(data), init_sigma

    def outputs(self, asked: Iterable[Question]) -> Iterator[np.ndarray]:
        """The answers, in order: float32 like x. `asked` is read ahead, so that small requests share ticks.

        Raises:
            NumericError: naming the images whose output is not finite. BackendError, DeviceError.
        """
        pending: collections.deque[tuple[_core.Request, np.ndarray, np.ndarray]] = collections.deque()
        waiting, source = 0, iter(asked)
        try:
            while True:
                while waiting == 0 or waiting < self._ahead:
                    following = next(source, None)
                    if following is None:
                        break
                    pending.append(self._submit(following))
                    waiting += len(following.x)
                if not pending:
                    return
                request, out, image = pending.popleft()
                self._engine._wait(request, self)
                bad, request = request.result()["bad"], None
                if bad:
                    error = NumericError("images: expected finite outputs of the network, got others for those in .bad")
                    error.bad = tuple(sorted({int(image[row]) for row in bad}))
                    raise error
                waiting, self._done = waiting - len(out), self._done + 1
                yield out
        finally:
            request = None
            for left, *_ in pending:
                left.cancel()
            pending.clear()

    def _submit(self, question: Question) -> tuple[_core.Request, np.ndarray, np.ndarray]:
        x, image, table = question.x, question.image, question.table
        out = np.empty(x.shape, np.float32)
        arguments = {
            "n": len(x), "labels": self.labels[image], "seeds": self.seeds[image], "scale": 1.0, "x_init": np.ascontiguousarray(x),
            "keep_nonfinite": True, "rows": table.rows.tobytes(), "init_sigma": 1.0,
        }  # fmt: skip
        return self._core.submit(out, self.shape, arguments, None, None), out, image


def output_table(row: np.ndarray) -> Table:
    """One row at the level of `row` (of ROW64) whose state after it is the network's output: x' = e."""
    rows = np.zeros(1, ROW)
    rows["flags"], rows["gs"] = LAST, 1
    for field in ("t", "t2", "c_in"):
        rows[field] = row[field]
    rows["wx"][0, _E] = 1
    return Table(rows)


def deviation_table(row: np.ndarray, kind: str, log_small: float, log_large: float, noise_index: int) -> Table:
    """The same, but x' = std z with the learned std and z of (seed, noise_index): std is x' / z where z is not 0."""
    rows = output_table(row).rows.copy()
    rows["flags"] |= LEARNED_VAR if kind == "learned" else LEARNED_RANGE
    rows["log_var_lo"], rows["log_var_hi"], rows["noise_index"] = log_small, log_large, noise_index
    rows["wx"][0, [_E, _Z]] = 0, 1
    return Table(rows)
