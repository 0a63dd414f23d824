"""Which device an engine runs on, and what runs a plan's network there."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from typing import Any

from . import _core
from .errors import BackendError, DeviceError, OptionError

_DRIVERS = ("/proc/driver/nvidia/version", "/dev/dxg")  # Linux; Windows' subsystem for it
_PRECISIONS = {"auto": ("fp16", "bf16", "fp32")}  # the first that passes the plan's self-test


def is_gpu_worth_asking(backend: str) -> bool:
    """Whether "auto" looks further: a driver is there, and so is what would run a network. Loads nothing."""
    has_driver = any(os.path.exists(path) for path in _DRIVERS)
    return has_driver and backend in ("auto", "torch") and importlib.util.find_spec("torch") is not None


def facts(device: str, backend: str, library: str | None) -> dict[str, Any] | None:
    """What the GPU named "cuda" or "cuda:N" is, or the first one for "auto"; None: the engine stays on the CPU.

    Raises:
        DeviceError: a named GPU is not there; the message says what is missing.
    """
    if not isinstance(device, str):
        raise OptionError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if device == "auto":
        if not is_gpu_worth_asking(backend):
            return None
        try:
            return json.loads(_core.device_info("cuda", library or ""))
        except DeviceError as e:
            logging.getLogger("ddpm_rt").info("device auto: %s", e)
            return None
    return json.loads(_core.device_info(device, library or "")) if device.startswith("cuda") else None


def torch_device(device: str, found: dict[str, Any]) -> Any:
    """torch's own device of that name; the CPU where the device is emulated.

    Raises:
        BackendError: torch is missing, or has no CUDA.
    """
    try:
        import torch
    except ImportError as e:
        raise BackendError(
            f"backend: expected PyTorch to run the network on {device}, got none: pip install torch"
        ) from e
    if found["kind"] != "cuda":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BackendError(f"backend: expected a PyTorch that sees the GPU, got {torch.__version__} without CUDA")
    return torch.device("cuda", 0 if device in ("auto", "cuda") else int(device.removeprefix("cuda:")))


def of_module(module: Any, device: str, library: str | os.PathLike[str] | None) -> tuple[str, Any]:
    """(the engine's device, torch's) for `Engine.from_torch`; torch's is None where the module runs on the CPU.

    Raises:
        DeviceError, BackendError, OptionError
    """
    from . import torch_denoiser

    own = torch_denoiser.device_of(module)
    if device == "auto":
        device = "cpu" if own is None or own.type == "cpu" else f"cuda:{own.index or 0}"
    found = facts(device, "torch", None if library is None else os.fspath(library))
    at = None if found is None else torch_device(device, found)
    wanted = "cpu" if at is None else str(at)
    if own is not None and str(own) != wanted:
        raise OptionError(f"module: expected its parameters on {wanted}, got {own}")
    return device, at


def open_plan(path: str, device: str, backend: str, precision: str, given: dict[str, Any]) -> _core.Engine:
    """An engine of the plan: on a GPU with PyTorch as one way to run its network there, behind TensorRT engines.

    Raises:
        PlanError, BackendError, DeviceError, OptionError
    """
    found = facts(device, backend, given.get("cuda_library"))
    try:
        networks, why_not = _networks_of_plan(path, device, backend, precision, found), None
    except BackendError as e:
        if backend == "torch" and device != "auto":
            raise
        networks, why_not = [], e
    try:
        return _core.Engine.open(path, given, networks)
    except BackendError as e:
        if why_not is None:
            raise
        raise BackendError(f"{e}; torch: {why_not}") from why_not


def _networks_of_plan(path: str, device: str, backend: str, precision: str, found: dict[str, Any] | None) -> list[Any]:
    """What runs the plan's network on the GPU, the most wanted first. Empty where the engine has it itself."""
    if found is None or backend not in ("auto", "torch"):
        return []
    plan = _core.Plan(path)
    manifest = json.loads(plan.manifest)
    try:
        stage = manifest["stages"][0]
        described = {role: manifest["networks"][stage[role]] for role in ("network", "temb") if stage.get(role)}
        is_onnx = all(network["kind"] == "onnx" for network in described.values())
    except (KeyError, IndexError, TypeError):
        return []  # the engine says what is wrong with it
    if not is_onnx or set(manifest.get("conditions") or {}) - {"label"}:
        return []
    at = torch_device(device, found)
    from . import onnx_torch

    return onnx_torch.networks_of_plan(plan, manifest, described, at, _PRECISIONS.get(precision, (precision,)))
