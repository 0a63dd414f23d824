"""Which project a file or folder is of, and its reader."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import OptionError, PlanError
from .imported import Imported, write

#: kind -> options of its reader, by their names here
KINDS: dict[str, tuple[str, ...]] = {
    "diffusers": ("scheduler", "network", "variant", "null_label"),
    "denoising-diffusion-pytorch": ("image_size", "objective", "sampling_steps", "data_range", "weights_of"),
    "guided-diffusion": ("preset", "flags"),
    "edm": ("weights_of",),
}


def kind_of(source: Path) -> str | None:
    """None: a run of ddpm-rt train, or an ONNX file."""
    if source.is_dir():
        from . import diffusers_folder

        return "diffusers" if diffusers_folder.is_folder(source) else None
    suffix = source.suffix.lower()
    if suffix == ".pkl":
        return "edm"
    if suffix in (".pt", ".pth", ".ckpt", ".bin"):
        from . import torch_file

        return torch_file.kind_of(source)
    return None


def read(source: str | os.PathLike[str], kind: str, **options: Any) -> Imported:
    """The model. Options are those of `KINDS[kind]`; another one that is given is an OptionError."""
    path = Path(source)
    given = {k: v for k, v in options.items() if v is not None}
    for name, value in given.items():
        if name not in KINDS[kind]:
            raise OptionError(
                f"{name}: expected it unset for {kind}, whose options are {', '.join(KINDS[kind])}, got {value!r}"
            )
    if kind == "diffusers":
        from .diffusers_folder import read as reader

        if "scheduler" in given:
            given["scheduler_config"] = given.pop("scheduler")
    elif kind == "denoising-diffusion-pytorch":
        from .denoising_diffusion_pytorch import read as reader
    elif kind == "guided-diffusion":
        from .guided_diffusion import read as reader
    elif kind == "edm":
        from .edm import read as reader
    else:
        raise PlanError(f"{path}: expected a model of {', '.join(KINDS)}, got {kind}")
    found: Callable[..., Imported] = reader
    return found(path, **given)


def export_model(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    defaults: Mapping[str, Any] | None = None,
    weights: str = "fp32",
    name: str | None = None,
    licence: str | None = None,
    card: str | None = None,
    classifier: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """A plan of another project's model: a diffusers folder, a .pt of openai's guided-diffusion or of denoising-diffusion-pytorch,
    an EDM .pkl. docs/importing.md has the options of each; defaults, weights, name, licence, card, classifier and the
    result are `export_plan`'s; beside a network of guided-diffusion, classifier may be a .pt of one of its classifiers.

    Raises:
        PlanError: no such file, none of these, or one with a part that has no counterpart, by its name. OptionError: an argument.
    """
    if not Path(source).exists():
        raise PlanError(f"source: expected a file or folder, found none at {os.fspath(source)!r}")
    kind = kind_of(Path(source))
    if kind is None:
        raise PlanError(f"{os.fspath(source)}: expected a model of {', '.join(KINDS)}, got another file")
    found = read(source, kind, **options)
    if classifier is not None and kind == "guided-diffusion":
        from .guided_diffusion import with_classifier

        classifier = with_classifier(found, classifier)
    return write(found, path, defaults=defaults, weights=weights, name=name, licence=licence, card=card, classifier=classifier)
