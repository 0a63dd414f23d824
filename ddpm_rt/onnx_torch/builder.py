"""An ONNX graph as a torch.fx graph.

Every value is followed at two batch sizes. What does not depend on the network's inputs is computed at once; where the two
results differ, a number is a multiple of the batch. So shapes that the exporter computes with operators cost nothing, and the
module takes any batch.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ..errors import BackendError

BATCHES = (2, 3)


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor of the graph at both batch sizes: itself where it is static, else on the meta device, with its node."""

    pair: tuple[torch.Tensor, torch.Tensor]
    node: fx.Node | None = None
    from_x: bool = False  # depends on the state, not on time and label alone
    exact: torch.Tensor | None = None  # what a static value was before it was cast

    @property
    def is_static(self) -> bool:
        return self.node is None

    @property
    def dtype(self) -> torch.dtype:
        return self.pair[0].dtype

    @property
    def is_floating(self) -> bool:
        return self.dtype.is_floating_point

    @property
    def rank(self) -> int:
        return self.pair[0].dim()


@dataclasses.dataclass(frozen=True)
class Dim:
    """A number that depends on the batch."""

    at: tuple[int, int]


class Builder:
    """Args: dtype: of convolutions and products that depend on the state; all else that depends on the state follows them,
    and what depends on time and label alone stays in float32."""

    def __init__(self, section: str, dtype: torch.dtype, channels_last: bool) -> None:
        self.section, self.dtype, self.channels_last = section, dtype, channels_last
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self._buffers: dict[int, tuple[Value, fx.Node]] = {}
        self._casts: dict[tuple[int, torch.dtype], tuple[Value, Value]] = {}
        self._first_input: fx.Node | None = None
        self._batch: fx.Node | None = None

    # ---- values

    def input(self, name: str, shape: Sequence[int], dtype: torch.dtype, from_x: bool) -> Value:
        node = self.graph.placeholder(name)
        self._first_input = self._first_input or node
        pair = tuple(torch.empty((b, *shape), dtype=dtype, device="meta") for b in BATCHES)
        return Value(pair, node, from_x)

    def static(self, tensor: torch.Tensor) -> Value:
        return Value((tensor, tensor))

    def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """fn over values: a Value, or a tuple of them."""
        values = [v for v in _flat((args, kwargs)) if isinstance(v, Value)]
        is_static = all(v.is_static for v in values)
        results = []
        for k in (0, 1):
            take = lambda v, k=k: self._concrete(v, k, is_static)
            results.append(fn(*_mapped(args, take), **_mapped(kwargs, take)))
        if is_static:
            return _wrapped(results, lambda pair, index: Value(pair))
        from_x = any(v.from_x for v in values)
        node = self.graph.call_function(fn, _mapped(args, self._noded), _mapped(kwargs, self._noded))
        if isinstance(results[0], torch.Tensor):
            return self._dynamic(tuple(results), node, from_x)
        return _wrapped(
            results,
            lambda pair, index: self._dynamic(pair, self.graph.call_function(operator.getitem, (node, index)), from_x),
        )

    def output(self, value: Value, dtype: torch.dtype) -> None:
        self.graph.output(self._noded(self.cast(value, dtype)))

    # ---- numbers

    def ints(self, value: Value) -> list[int | Dim]:
        """The numbers of a static integer tensor."""
        if not value.is_static:
            raise self.refuse("shapes and indices that depend on the batch size alone", "one computed from data")
        a, b = (t.reshape(-1).tolist() for t in value.pair)
        return [self.dim(int(x), int(y)) for x, y in zip(a, b, strict=True)]

    def shape(self, value: Value) -> list[int | Dim]:
        return [self.dim(a, b) for a, b in zip(*(t.shape for t in value.pair), strict=True)]

    def dim(self, a: int, b: int) -> int | Dim:
        return a if a == b else Dim((a, b))

    def refuse(self, expected: str, got: str) -> BackendError:
        return BackendError(f"section {self.section}: expected {expected} with backend torch, got {got}")

    # ---- precision

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        if value.dtype == dtype:
            return value
        key = (id(value), dtype)
        if key not in self._casts:
            self._casts[key] = (value, self.call(to_dtype, value, dtype))  # holds `value`: ids stay unique
            self._casts[key][1].exact = value.pair[0] if value.is_static else None
        return self._casts[key][1]

    def heavy(self, *values: Value | None) -> list[Value | None]:
        """Operands of a convolution or product: in the graph's dtype where the state is among them, else in float32."""
        dtype = self.dtype if any(v is not None and v.from_x for v in values) else torch.float32
        return [v if v is None or not v.is_floating else self.cast(v, dtype) for v in values]

    def matched(self, *values: Value) -> list[Value]:
        """Operands of an elementwise operator: in the dtype of those that have left float32, if any has."""
        low = [v.dtype for v in values if v.is_floating and not v.is_static and v.dtype != torch.float32]
        return [self.cast(v, low[0]) if low and v.is_floating else v for v in values]

    # ---- inside

    def _dynamic(self, pair: tuple[torch.Tensor, torch.Tensor], node: fx.Node, from_x: bool) -> Value:
        node.meta["pair"] = pair
        return Value(pair, node, from_x)

    def _concrete(self, v: Any, k: int, is_static: bool) -> Any:
        if isinstance(v, Dim):
            return v.at[k]
        if not isinstance(v, Value):
            return v
        return v.pair[k] if is_static or not v.is_static else v.pair[k].to("meta")

    def _noded(self, v: Any) -> Any:
        if isinstance(v, Dim):
            factor = v.at[0] // BATCHES[0]
            if v.at != tuple(factor * b for b in BATCHES):
                raise self.refuse(
                    "sizes that are fixed or multiples of the batch", f"{v.at[0]} for a batch of {BATCHES[0]}"
                )
            if self._batch is None:
                with self.graph.inserting_after(self._first_input):
                    self._batch = self.graph.call_method("size", (self._first_input, 0))
            return self._batch if factor == 1 else self.graph.call_function(operator.mul, (self._batch, factor))
        if not isinstance(v, Value):
            return v
        return v.node if v.node is not None else self._buffer(v)

    def _buffer(self, value: Value) -> fx.Node:
        if id(value) in self._buffers:
            return self._buffers[id(value)][1]
        a, b = value.pair
        tensor = a
        if a.shape != b.shape or not torch.equal(a, b):  # one row repeated for the whole batch
            tensor = a[:1]
            if not (torch.equal(tensor.expand_as(a), a) and torch.equal(tensor.expand(b.shape), b)):
                raise self.refuse("constants", "one whose values depend on the batch size")
        tensor = tensor.contiguous()
        if self.channels_last and tensor.dim() == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        name = f"c{len(self._buffers)}"
        self.root.register_buffer(name, tensor)
        node = self.graph.get_attr(name)
        node.meta["exact"] = value.exact if value.exact is not None else tensor
        if tensor.shape != a.shape:
            node = self.graph.call_function(torch.broadcast_to, (node, [self._noded(d) for d in self.shape(value)]))
        self._buffers[id(value)] = (value, node)
        return node


def to_dtype(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype)


def _flat(v: Any) -> list[Any]:
    if isinstance(v, (list, tuple)):
        return [x for item in v for x in _flat(item)]
    if isinstance(v, dict):
        return _flat(list(v.values()))
    return [v]


def _mapped(v: Any, f: Callable[[Any], Any]) -> Any:
    if isinstance(v, (list, tuple)):
        return type(v)(_mapped(item, f) for item in v)
    if isinstance(v, dict):
        return {key: _mapped(item, f) for key, item in v.items()}
    return f(v)


def _wrapped(results: list[Any], make: Callable[[Any, int], Value]) -> Any:
    if isinstance(results[0], torch.Tensor):
        return make(tuple(results), 0)
    return tuple(make(pair, index) for index, pair in enumerate(zip(*results, strict=True)))
