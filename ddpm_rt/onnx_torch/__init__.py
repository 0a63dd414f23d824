"""A plan's ONNX networks as PyTorch modules, so that a GPU with nothing but torch runs any plan. Needs no `onnx` package.

reader.py reads the file, builder.py follows its values, operators.py and shapes.py say each operator in torch, fuse.py puts
together what exporters take apart. Imported inside functions alone: it imports torch.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ..errors import BackendError, DdpmError
from ..torch_denoiser import DTYPES, TorchNetwork
from . import fuse, reader, shapes  # noqa: F401  (shapes adds its operators)
from .builder import Builder
from .operators import OPERATORS

_settings_lock = threading.Lock()  # torch's settings of convolutions are the process's


def module(
    data: bytes,
    section: str,
    inputs: Mapping[str, tuple[str, Sequence[int], torch.dtype]],
    output: str,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> fx.GraphModule:
    """The graph's one output as a module on the CPU, any batch size; its arguments are `inputs`, in this order.

    Args:
        inputs: role -> (the graph's name, shape of one row, dtype). Values of the role "x" are the state: what is computed
            from them is computed in `dtype`, but for sums of norms and softmax, which are float32; the rest is float32.
        output: the graph's name; returned as float32.

    Raises:
        PlanError: no ONNX model. BackendError: an operator, or a use of one, that this has no torch call for.
    """
    model = reader.read(data, section)
    b = Builder(section, dtype, channels_last)
    values = {name: b.input(role, shape, kind, role == "x") for role, (name, shape, kind) in inputs.items()}
    unknown = sorted(set(model.inputs) - set(values))
    if unknown:
        raise b.refuse(f"inputs {', '.join(sorted(values))}", ", ".join(unknown))
    values |= {name: b.static(torch.from_numpy(np.array(array))) for name, array in model.initializers.items()}
    for node in model.nodes:
        _add(b, node, values)
    if output not in values:
        raise b.refuse(f"an output {output}", ", ".join(model.outputs) or "none")
    b.output(values[output], torch.float32)
    fuse.fuse(b.graph, b.root)
    b.graph.lint()
    return fx.GraphModule(b.root, b.graph).eval().requires_grad_(False)


def _add(b: Builder, node: reader.Node, values: dict[str, Any]) -> None:
    run = OPERATORS.get(node.op)
    if run is None:
        raise b.refuse("operators that it knows", f"{node.op} at {node.name or node.outputs[0]!r}")
    try:
        result = run(b, node, [values[name] if name else None for name in node.inputs])
    except DdpmError:
        raise
    except Exception as e:  # whatever torch makes of a file's numbers
        raise BackendError(
            f"section {b.section}: expected a valid {node.op} at {node.name or node.outputs[0]!r}, got {type(e).__name__}: {e}"
        ) from e
    results = result if isinstance(result, tuple) else (result,)
    values.update(zip((name for name in node.outputs), results, strict=False))


def networks_of_plan(
    plan: Any,
    manifest: Mapping[str, Any],
    described: Mapping[str, Mapping[str, Any]],
    at: torch.device,
    precisions: Sequence[str],
) -> list[TorchNetwork]:
    """One TorchNetwork for each precision, in this order; all but the first are built when the engine first asks."""
    shape = tuple(manifest["sample"]["shape"])
    width = int(described["temb"]["rows_width"]) if "temb" in described else 0
    kinds = {
        "x": (shape, torch.float32),
        "t": ((), torch.float32),
        "label": ((), torch.int64),
        "rows": ((width,), torch.float32),
    }

    def built(role: str, output: str, precision: str) -> Callable[..., torch.Tensor]:
        network = described[role]
        roles = [r for r in kinds if r in network["inputs"]]
        graph = module(
            plan.read(network["section"]),
            network["section"],
            {r: (network["inputs"][r], *kinds[r]) for r in roles},
            network["outputs"][output],
            dtype=DTYPES[precision],
            channels_last=len(shape) == 3,
        ).to(at)
        return lambda **given: graph(*(given[r] for r in roles))

    embed = functools.cache(lambda: built("temb", "rows", "fp32"))
    networks = []
    for precision in precisions:
        unet = functools.cache(functools.partial(built, "network", "eps", precision))
        if not networks:
            unet()
            if width:
                embed()
        networks.append(
            TorchNetwork(
                _exactly(lambda x, t, labels, rows, unet=unet: unet()(x=x, t=t, label=labels, rows=rows), precision == "fp32"),
                shape,
                at,
                precision=precision,
                channels_last=True,
                has_labels="label" in described["network"]["inputs"]
                or "label" in described.get("temb", {}).get("inputs", {}),
                rows_width=width,
                embed=_exactly(lambda t, labels: embed()(t=t, label=labels), True) if width else None,
            )
        )
    return networks


def _exactly(call: Callable[..., torch.Tensor], is_float32: bool) -> Callable[..., torch.Tensor]:
    """With algorithms whose results are the same each time; where float32 is meant, without TF32, which is not that."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    wanted = [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    if is_float32:
        wanted += [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]

    @functools.wraps(call)
    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        with _settings_lock:
            before = [(where, name, getattr(where, name)) for where, name, _ in wanted]
            try:
                for where, name, value in wanted:
                    setattr(where, name, value)
                return call(*args, **kwargs)
            finally:
                for where, name, value in before:
                    setattr(where, name, value)

    return run
