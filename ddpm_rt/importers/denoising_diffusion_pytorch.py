"""model-N.pt of denoising-diffusion-pytorch's Trainer, or the state dict of its GaussianDiffusion or LearnedGaussianDiffusion.

The Unet is that project's own; all it was made with is read off the tensors' shapes, the schedule and the objective off the
buffers. The file does not tell the images' size, how many steps its sampling takes, and whether the data was normalised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..arrays import integer
from ..errors import OptionError, PlanError
from . import scheduler_betas, torch_file
from .imported import Imported, digest, load_state, need, own_settings

OBJECTIVES = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}
WEIGHTS_OF = ("ema", "model")


def read(
    path: Path,
    *,
    image_size: int | Sequence[int] | None = None,
    objective: str | None = None,
    sampling_steps: int | None = None,
    data_range: Sequence[float] = (-1.0, 1.0),
    weights_of: str | None = None,
) -> Imported:
    """Args:
        image_size: of GaussianDiffusion; one number, or height and width.
        objective: "pred_noise", "pred_x0" or "pred_v"; None: read off the loss weights.
        sampling_steps: GaussianDiffusion's sampling_timesteps: fewer than T is its DDIM sampling with eta 0; None: all, with DDPM.
        data_range: (0, 1) where auto_normalize was False.
        weights_of: "ema" or "model"; None: the averaged ones where there are any.

    Raises:
        PlanError: a file of another kind, a tensor that the Unet has not, self-conditioning. OptionError: an argument.
    """
    file = torch_file.load(path)
    state = _diffusion_state(path, file, weights_of)
    unet = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    if "init_conv.weight" not in unet or "betas" not in state:
        raise PlanError(f"{path}: expected the state of a GaussianDiffusion over a Unet (betas, model.init_conv.weight), got "
                        f"{', '.join(sorted(state)[:4])}")  # fmt: skip
    arguments = unet_arguments(path, unet)
    module = load_state(need("denoising_diffusion_pytorch").Unet(**arguments), unet, str(path))
    alpha_bar = np.cumprod(1 - state["betas"].double().numpy())
    found = _objective(alpha_bar, state["loss_weight"]) if "loss_weight" in state else None
    if objective is not None and objective not in OBJECTIVES:
        raise OptionError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
    if objective is None and found is None:
        raise OptionError(
            f"objective: expected one of {', '.join(OBJECTIVES)}: the file has no loss_weight to read it off, got none"
        )
    is_learned = arguments["learned_variance"]
    defaults = {"clip": "rederive", "clip_range": [-1.0, 1.0], **_sampling(sampling_steps, len(alpha_bar), is_learned)}
    settings = own_settings(
        alpha_bar, OBJECTIVES[objective or found or ""], defaults, variance="learned_range" if is_learned else "fixed"
    )
    height, width = _size(image_size)
    step = f", step {int(file['step'])}" if isinstance(file.get("step"), int) else ""
    return Imported(
        module, (arguments["channels"], height, width), settings, f"denoising-diffusion-pytorch {path.name}{step}.",
        {"checkpoint_sha256": digest(path)}, data_range=(float(data_range[0]), float(data_range[1])), integer_time=True,
    )  # fmt: skip


def _diffusion_state(path: Path, file: Mapping[str, Any], weights_of: str | None) -> dict[str, Tensor]:
    if weights_of is not None and weights_of not in WEIGHTS_OF:
        raise OptionError(f"weights_of: expected one of {', '.join(WEIGHTS_OF)}, got {weights_of!r}")
    if "betas" in file:
        return dict(file)
    has_ema = isinstance(file.get("ema"), Mapping)
    if weights_of == "ema" and not has_ema:
        raise OptionError(f"weights_of: expected model, got ema: {path} has no averaged weights")
    if has_ema and weights_of != "model":
        return {k.removeprefix("ema_model."): v for k, v in file["ema"].items() if k.startswith("ema_model.")}
    if not isinstance(file.get("model"), Mapping):
        raise PlanError(f"{path}: expected the key model or ema with a state dict, got {', '.join(map(str, file))}")
    return dict(file["model"])


def unet_arguments(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the project's Unet was made with, from its tensors' shapes."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise PlanError(f"{path}: {name}: expected a tensor of a Unet, found none")
        return tuple(state[name].shape)

    stages = 1 + max((int(m[1]) for k in state if (m := re.match(r"downs\.(\d+)\.", k))), default=0)
    dim, (init_dim, taken, _, _) = shape("time_mlp.1.weight")[0] // 4, shape("init_conv.weight")
    widths = [shape(f"downs.{i}.3.{'1.' if i + 1 < stages else ''}weight")[0] for i in range(stages)]
    full = [f"downs.{i}.2.to_out.weight" in state for i in range(stages)]
    memory = [
        shape(f"downs.{i}.2.mem_kv") for i in range(stages)
    ]  # linear: [2, heads, dim, n]; full: [2, heads, n, dim]
    out = shape("final_conv.weight")[0]
    if taken == 2 * out:
        raise PlanError(
            f"{path}: self_condition: expected a network of x and t alone, got one that also takes its last x0"
        )
    return {
        "dim": dim,
        "init_dim": init_dim,
        "dim_mults": tuple(w // dim for w in widths),
        "channels": taken,
        "learned_variance": out == 2 * taken,
        "full_attn": tuple(full),
        "attn_heads": tuple(m[1] for m in memory),
        "attn_dim_head": tuple(m[3] if f else m[2] for m, f in zip(memory, full, strict=True)),
    }


def _objective(alpha_bar: np.ndarray, loss_weight: Tensor) -> str | None:
    """By the weights of the loss where the signal-to-noise ratio is nearest 2: not 1, and below any clipping of it (2303.09556)."""
    snr = alpha_bar / (1 - alpha_bar)
    at = int(np.abs(np.log(snr.clip(1e-12) / 2)).argmin())
    expected = {"pred_noise": 1.0, "pred_x0": snr[at], "pred_v": snr[at] / (snr[at] + 1)}
    weight = float(loss_weight[at])
    fits = [k for k, v in expected.items() if abs(weight - v) <= 1e-4 * max(1.0, v)]
    return fits[0] if len(fits) == 1 else None


def _sampling(steps: int | None, T: int, is_learned: bool) -> dict[str, Any]:
    if steps is None or steps == T:
        return {"sampler": "ddpm", "variance": "learned_range" if is_learned else "fixed_small", "steps": T}
    count = integer(steps, "sampling_steps", 1, T)
    times = scheduler_betas.linspace(-1, T - 1, count + 1).astype(np.int64)[1:]  # the first, -1, is where it ends
    return {"sampler": "ddim", "sampler_options": {"timesteps": [int(t) for t in times[::-1]]}}


def _size(given: int | Sequence[int] | None) -> tuple[int, int]:
    if given is None:
        raise OptionError("image_size: expected one number, or height and width: the file does not tell them, got none")
    sizes = [given] * 2 if isinstance(given, int) else list(given)
    if len(sizes) != 2:
        raise OptionError(f"image_size: expected one number, or height and width, got {given!r}")
    return integer(sizes[0], "image_size", 1, 1 << 16), integer(sizes[1], "image_size", 1, 1 << 16)
