"""What a loop over `ddpm_rt.kernels.triton.step` keeps on the device: the sampler's table, and the solver's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import row
from ..arrays import integer
from ..errors import OptionError, ShapeError
from ..row import ROW
from ._tensors import FLOAT32, channels_last_format, framework, is_channels_last, tensor

if TYPE_CHECKING:
    import torch

_LEARNED = row.LEARNED_VAR | row.LEARNED_RANGE
_EXECUTED = row.PUSH | row.KEEP | row.CLIP | _LEARNED | row.GRAD | row.BLEND | row.NO_EVAL | row.LAST
_REDUCTIONS = ("THRESHOLD", "RESCALE", "NORM", "VLB")


class Table:
    """`rows`, a table as from `ddpm_rt.rows()`, copied to `device`: "cuda", "cuda:1", a torch.device.

    Make it once for a loop: a step that is given the numpy table copies it at every call.

    Raises:
        ShapeError: not a table of ROW, or an empty one.
        OptionError: a flag that Triton does not execute, by name.
    """

    def __init__(self, rows: np.ndarray, device: Any = "cuda") -> None:
        table = np.ascontiguousarray(rows)
        if table.dtype != ROW or table.ndim != 1 or len(table) == 0:
            raise ShapeError(
                f"rows: expected a table of ROW as from ddpm_rt.rows(), got {table.dtype} {list(table.shape)}"
            )
        self.rows = table
        flags = table["flags"]
        every = int(np.bitwise_or.reduce(flags))
        reduces = [name for name in _REDUCTIONS if every & getattr(row, name)]
        if reduces:
            raise OptionError(f"rows.flags: expected no reduction over a sample, got {', '.join(reduces)}")
        if every & ~_EXECUTED:
            raise OptionError(f"rows.flags: expected known flags (mask {_EXECUTED}), got {every}")
        self.is_learned = bool(every & _LEARNED)
        keeps, blends = flags & row.KEEP != 0, flags & row.BLEND != 0
        moves_e = (table["ge"] != 0) & (flags & row.NO_EVAL == 0)
        wx, wy = table["wx"] != 0, table["wy"] != 0
        self._uses = {
            "history": (flags & row.PUSH != 0) | wx[:, 3:6].any(1) | (keeps & wy[:, 3:6].any(1)),
            "anchor": keeps | wx[:, 6],
            "grad": (flags & row.GRAD != 0) & (moves_e | (table["gm"] != 0)),
            "known": blends,
            "noise": wx[:, 7] | (blends & (table["kz"] != 0)),
        }
        torch = framework()
        self.words = torch.from_numpy(table.view(np.int32).reshape(len(table), -1)).to(device)
        self.ring_steps = torch.from_numpy(2 * (flags & row.PUSH).astype(np.int32)).to(device)

    def uses(self, what: str, index: int | None = None) -> bool:
        """Whether row `index` has a use for "history", "anchor", "grad", "known" or "noise"; None: whether any row has."""
        return bool(self._uses[what].any() if index is None else self._uses[what][index])

    def pushes(self, index: int) -> bool:
        return bool(self.rows["flags"][index] & row.PUSH)

    def has_next(self, index: int | None) -> bool:
        """Whether row `index` (None: every row) is followed by another or is the sample's LAST."""
        ends = bool(self.rows["flags"][-1] & row.LAST)
        return ends or (index is not None and index + 1 < len(self.rows))


class State:
    """What a solver carries from row to row beside x, for `x` [n, ...] float32, in the memory format of x.

    `history` [3, n, ...] float32 is a ring, newest at `ring`: an int, or int32 [n] once rows have differed by sample.
    `anchor` [n, ...] float32. `input` [copies * n, ...] of `input_dtype` is the next network input, c_in x of the next
    row, `copies` times: two feed a guided network that takes both evaluations in one batch. `x0` [n, ...] float32 is the
    last prediction of the clean sample. Each may be set to None: input and x0 are then not written.
    """

    def __init__(self, x: torch.Tensor, *, input_dtype: torch.dtype | None = None, copies: int = 1) -> None:
        is_channels_last({"x": tensor(x, "x", None, FLOAT32)})
        torch = framework()

        def zeros(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            last = None if x.is_contiguous() else channels_last_format(x)
            shape = (count * x.shape[0], *x.shape[1:])
            made = torch.empty(shape, dtype=dtype, device=x.device, memory_format=last or torch.contiguous_format)
            return made.zero_()

        self.history: torch.Tensor | None = zeros(3).unflatten(0, (3, x.shape[0]))
        self.anchor: torch.Tensor | None = zeros(1)
        self.input: torch.Tensor | None = zeros(integer(copies, "copies", 1, 16), input_dtype or torch.float32)
        self.x0: torch.Tensor | None = zeros(1)
        self.ring: int | torch.Tensor = 0

    def buffers(self, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """history (as [3 n, ...]), anchor, input and x0 under "state." names, checked against x."""
        n, *rest = x.shape
        given: dict[str, torch.Tensor | None] = {"state.anchor": self.anchor, "state.x0": self.x0}
        for field, value in given.items():
            if value is not None:
                tensor(value, field, x.shape, FLOAT32, x.device)
        if self.history is not None:
            entries = tensor(self.history, "state.history", (3, *x.shape), FLOAT32, x.device)
            if n > 0 and entries.stride(0) != x.numel():
                raise ShapeError(f"state.history: expected dense entries, got strides {entries.stride()}")
            given["state.history"] = entries.view(3 * n, *rest)
        if self.input is not None:
            copies = self.input.shape[0] // n if n > 0 and self.input.ndim > 0 else 1
            given["state.input"] = tensor(self.input, "state.input", (max(1, copies) * n, *rest), device=x.device)
        return given

    def advance(self, table: Table, index: int | torch.Tensor) -> None:
        """Turns the ring after rows that pushed."""
        if isinstance(self.ring, int):
            self.ring = (self.ring + 2 * table.pushes(index)) % 3
        else:
            self.ring.add_(table.ring_steps[index]).remainder_(3)
