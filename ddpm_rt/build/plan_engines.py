"""Engines for the networks of a plan: into the user's cache, and on request into a copy of the plan."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from .. import _core, plan_files
from ..errors import OptionError, PlanError
from . import bindings, cache, engine, gpu

PRECISIONS = ("fp16", "bf16", "fp32")
PROFILE = (1, 16, 128)
EMBEDDING_ROWS = (
    64  # the embedding runs in batches of this one size, so that its bits cannot depend on how many are asked for
)
RECIPE = 1  # rises when the same inputs would give another engine


def build(
    plan: str | os.PathLike[str],
    *,
    precision: str = "fp16",
    profiles: Sequence[Any] = (PROFILE,),
    capabilities: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    library: str | os.PathLike[str] | None = None,
    force: bool = False,
    on_step: Callable[[str, str, int, int], None] | None = None,
    on_log: Callable[[str, str], None] | None = None,
) -> dict[str, Any]:
    """Builds what the cache does not hold yet. No GPU is needed with TensorRT-RTX.

    plan: a path or name. precision: "fp16", "bf16" or "fp32", of convolutions and matrix products; normalisations, softmax and
    the embedding of time and label stay float32. profiles: (least, best, most) rows of a batch. capabilities: of the GPUs to
    build for, "8.6", or "current"; none: all that the library's engines run on. output: a copy of the plan with the engines in
    it, for `trust_native=True`. cache_dir: as Engine's; force: build again. on_step(network, phase, step, steps);
    on_log(severity, text), with every layer in it.

    Returns library, version, library_path, plan, output and engines: a card each, with path, seconds and cached.

    Raises:
        BackendError: no TensorRT, no bindings, another version, or a build that fails. PlanError: a plan without ONNX
        networks. OptionError: an argument. DeviceError: no GPU where one is needed.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    checked = tuple(engine.profile_of(p) for p in profiles) or (PROFILE,)
    path = plan_files.find(plan)
    file = _core.Plan(str(path))
    networks = networks_of(json.loads(file.manifest))
    rt = bindings.load(library)
    asked = engine.capabilities_of(capabilities, rt)
    built_for = gpu.capabilities_built(rt.kind, asked)
    folder = cache.folder_of(cache_dir)
    engines = []
    for role, network in networks.items():
        own = precision if role == "unet" else "fp32"
        rows = checked if role == "unet" else ((EMBEDDING_ROWS,) * 3,)
        section = file.read(network["section"])
        card = {
            "library": rt.kind,
            "version": rt.version,
            "network": role,
            "source": hashlib.sha256(section).hexdigest(),
            "precision": own,
            "profiles": [list(p) for p in rows],
            "capabilities": list(built_for),
            "recipe": RECIPE,
        }
        start = time.monotonic()
        found = None if force else cache.find(folder, card)
        if found is None:
            made = engine.build_engine(
                rt,
                _model(section, network, role, own),
                engine.Recipe(rows, asked, detailed=on_log is not None),
                what=f"networks.{role}",
                on_step=None if on_step is None else (lambda *s, role=role: on_step(role, *s)),
                on_log=on_log,
            )
            _, whole = cache.store(folder, card, made)
        else:
            made, whole = found
        engines.append((whole, made, time.monotonic() - start, found is not None))
    if output is not None:
        embed(file, [(card, data) for card, data, _, _ in engines], output)
    return {
        "library": rt.kind,
        "version": rt.version,
        "library_path": rt.path,
        "plan": str(path),
        "output": None if output is None else os.fspath(output),
        "engines": [
            {
                **card,
                "path": str(folder / f"{cache.key_of(card)}.engine"),
                "seconds": round(seconds, 2),
                "cached": cached,
            }
            for card, _, seconds, cached in engines
        ],
    }


def networks_of(manifest: Any) -> dict[str, dict[str, Any]]:
    """ "temb" where there is one, and "unet" -> the manifest's network. PlanError where they are not ONNX."""
    try:
        stage = manifest["stages"][0]
        roles = {"temb": stage.get("temb"), "unet": stage["network"]}
        found = {role: manifest["networks"][name] for role, name in roles.items() if name is not None}
        kinds = {n["kind"] for n in found.values()}
        whole = all(n["section"] and n["inputs"] and n["outputs"] for n in found.values() if n["kind"] == "onnx")
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise PlanError(f"manifest: expected stages and networks, got none that fit ({e!r})") from e
    if kinds != {"onnx"} or not whole:
        raise PlanError(f"networks.kind: expected onnx, which engines are built from, got {', '.join(sorted(kinds))}")
    return found


def _model(section: bytes, network: dict[str, Any], role: str, precision: str) -> bytes:
    if precision == "fp32":
        return section
    import onnx
    from google.protobuf.message import DecodeError

    from .precision import to_half

    try:
        model = onnx.load_model_from_string(section)
    except DecodeError as e:
        raise PlanError(f"networks.{role}: expected an ONNX model, got bytes that are none") from e
    return to_half(model, precision, network["inputs"]["x"], [network["outputs"]["eps"]]).SerializeToString()


def embed(plan: Any, engines: Sequence[tuple[dict[str, Any], bytes]], output: str | os.PathLike[str]) -> None:
    """Writes a copy of `plan` that holds the engines too; those of the same card that it held are replaced."""
    manifest = json.loads(plan.manifest)
    listed = {_identity(card): card for card in manifest.get("engines") or []}
    sections = {s["name"]: plan.read(s["name"]) for s in plan.sections}
    for card, data in engines:
        former = listed.get(_identity(card))
        if former is not None:
            sections.pop(former.get("section"), None)
        name = f"engine.{cache.key_of(card)[:16]}"
        sections[name] = data
        listed[_identity(card)] = {**card, "section": name}
    manifest["engines"] = list(listed.values())
    _core.write_plan(os.fspath(output), json.dumps(manifest), sections)


def _identity(card: dict[str, Any]) -> str:
    keys = ("library", "version", "network", "source", "precision", "profiles", "capabilities")
    return json.dumps({k: card.get(k) for k in keys}, sort_keys=True)
