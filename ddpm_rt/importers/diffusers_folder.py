"""A diffusers folder: the network by diffusers itself, the scheduler by `scheduler.read`.

UNet2DModel (pipelines, `unet_ema`, and the early flat layout), DiT-class transformers with class labels, and
UNet2DConditionModel. Nothing is downloaded, and weights in .bin files are read with weights_only.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, PlanError
from . import scheduler
from .imported import Imported, digest, need, read_json, read_scheduler

log = logging.getLogger("ddpm_rt.export")

NETWORKS = ("UNet2DModel", "DiTTransformer2DModel", "Transformer2DModel")
_FOLDERS = ("unet_ema", "unet", "transformer", ".")
#: Pipelines that sample with a scheduler of this class whatever class their folder names.
_CONVERTS = {"DDIMPipeline": "DDIMScheduler", "PNDMPipeline": "PNDMScheduler"}
NULLS = ("last", "zero")


class _UNet(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.unet(x, t, class_labels=label, return_dict=False)[0]


class _DiT(nn.Module):
    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.transformer(x, timestep=t, class_labels=label, return_dict=False)[0]


def is_folder(path: Path) -> bool:
    """A run of ddpm-rt train has a config.json too, without a class's name."""
    if not path.is_dir():
        return False
    if any((path / f / "config.json").is_file() for f in _FOLDERS[:-1]) or (path / "model_index.json").is_file():
        return True
    return (path / "config.json").is_file() and "_class_name" in read_json(path / "config.json")


def find_network(folder: Path, weights: str | None) -> tuple[Path, dict[str, Any]]:
    """The folder of the network's config.json, and its content. weights: a subfolder by name."""
    tried = (weights,) if weights else _FOLDERS
    for name in tried:
        if (file := folder / name / "config.json").is_file():
            return file.parent, read_json(file)
    raise PlanError(f"{folder}: expected config.json in one of {', '.join(tried)}, found none")


def load_network(folder: Path, config: Mapping[str, Any], variant: str | None) -> tuple[nn.Module, str]:
    """The module, in float32, with every key of its config known and every tensor loaded; and its class's name."""
    diffusers = need("diffusers")
    name = config.get("_class_name")
    own = getattr(diffusers, str(name), None)
    if own is None or not hasattr(own, "from_pretrained"):
        raise PlanError(f"{folder}/config.json: _class_name: expected a network of diffusers, got {name!r}")
    known = set(inspect.signature(own.__init__).parameters)
    if strange := [k for k in config if k not in known and not k.startswith("_")]:
        raise PlanError(f"{folder}/config.json: {strange[0]}: expected a key of {name}, got an unknown one")
    variants = (
        [variant] if variant or not (folder / "diffusion_pytorch_model.fp16.safetensors").is_file() else [None, "fp16"]
    )
    for i, chosen in enumerate(variants):
        try:
            module, info = own.from_pretrained(
                str(folder), variant=chosen, local_files_only=True, output_loading_info=True, low_cpu_mem_usage=False,
                torch_dtype=torch.float32,
            )  # fmt: skip
            break
        except Exception as e:  # OSError for missing files, and whatever its own code raises
            if i + 1 == len(variants):
                reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:300]
                raise PlanError(f"{folder}: expected weights that diffusers loads as {name}: {reason}") from e
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(what):
            raise PlanError(f"{folder}: {what}: expected none, got {str(next(iter(info[what])))[:200]}")
    return module.eval(), str(name)


def read(
    folder: Path,
    *,
    scheduler_config: Any = None,
    network: str | None = None,
    variant: str | None = None,
    null_label: str | None = None,
) -> Imported:
    """Args:
        folder: of a pipeline, or of a network alone.
        scheduler_config: a scheduler_config.json or its content; None: the folder's own.
        network: subfolder of the network; None: unet_ema, unet, transformer, or the folder itself.
        variant: of the weights' file, such as "fp16"; None: the plain one, else fp16.
        null_label: of a UNet2DModel with classes: "last": its last class means no class; "zero" (None): a zero embedding does,
            which it was not trained with, so that only `scale` 1 has a meaning.

    Raises:
        PlanError: the folder lacks something, or has a network or a key without counterpart. OptionError: an argument.
    """
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    where, config = find_network(folder, network)
    settings = scheduler.read(_scheduler_of(folder, index, scheduler_config))
    if config.get("_class_name") not in NETWORKS:
        raise PlanError(
            f"{where}/config.json: _class_name: expected one of {', '.join(NETWORKS)}, got {config.get('_class_name')!r}"
        )
    module, name = load_network(where, config, variant)
    sources = {f"{f.name}_sha256": digest(f) for f in sorted(where.iterdir()) if f.suffix in (".safetensors", ".bin")}
    origin = f"diffusers {name} with {settings.class_name}, from {folder.resolve().name}."
    if name == "UNet2DModel":
        return _unet(module, settings, origin, sources, null_label)
    return _dit(module, settings, origin, sources, index, folder)


def _scheduler_of(folder: Path, index: Mapping[str, Any], given: Any) -> dict[str, Any]:
    config = read_scheduler(given)
    if config is not None:
        return config
    for file in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json",
                 folder.parent / "scheduler" / "scheduler_config.json"):  # fmt: skip
        if file.is_file():
            config = read_json(file)
            converted = _CONVERTS.get(str(index.get("_class_name")))
            return config | ({"_class_name": converted} if converted else {})
    raise PlanError(f"{folder}: expected scheduler/scheduler_config.json, found none; give one with scheduler=")


def _unet(
    module: nn.Module, settings: scheduler.Scheduler, origin: str, sources: dict[str, str], null: str | None
) -> Imported:
    c = module.config
    if c.sample_size is None:
        raise PlanError("config.json: sample_size: expected a size, got null")
    sizes = (c.sample_size, c.sample_size) if isinstance(c.sample_size, int) else tuple(c.sample_size)
    classes = None
    if null is not None and null not in NULLS:
        raise OptionError(f"null_label: expected one of {', '.join(NULLS)}, got {null!r}")
    if c.class_embed_type not in (None, "timestep") or (c.class_embed_type and not c.num_class_embeds):
        raise PlanError(f"config.json: class_embed_type: expected null with num_class_embeds, got {c.class_embed_type!r}: "
                        "a class is a number here")  # fmt: skip
    if c.num_class_embeds is not None:
        table = module.class_embedding
        if null == "last":
            classes = c.num_class_embeds - 1
        elif isinstance(table, nn.Embedding):
            classes = c.num_class_embeds
            padded = torch.cat([table.weight.detach(), table.weight.new_zeros(1, table.weight.shape[1])])
            module.class_embedding = nn.Embedding.from_pretrained(padded)
        else:
            raise PlanError(
                "config.json: class_embed_type: expected null, got 'timestep'; null_label='last' takes its last class as none"
            )
        if classes < 1:
            raise OptionError(f"null_label: expected zero for a network of {c.num_class_embeds} class, got last")
    elif null is not None:
        raise OptionError(f"null_label: expected it unset, got {null!r}: the network has no classes")
    return Imported(
        _UNet(module), (c.in_channels, *sizes), settings, origin, sources, classes,
        defaults={"scale": 1.0} if classes else {}, keeps_variance=c.out_channels == 2 * c.in_channels,
        integer_time=c.time_embedding_type == "learned",
    )  # fmt: skip


def _dit(
    module: nn.Module,
    settings: scheduler.Scheduler,
    origin: str,
    sources: dict[str, str],
    index: Mapping[str, Any],
    folder: Path,
) -> Imported:
    """DiTPipeline guides and keeps the first half of the output; its last class embedding is the null label."""
    c = module.config
    classes = c.num_embeds_ada_norm
    table = module.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
    if table.num_embeddings != classes + 1:
        raise PlanError(f"config.json: num_embeds_ada_norm: expected {table.num_embeddings - 1}, one less than there are "
                        f"embeddings, got {classes}")  # fmt: skip
    named = index.get("id2label") or {}
    names = tuple(str(named[str(i)]) for i in range(classes)) if all(str(i) in named for i in range(classes)) else None
    vae = folder / "vae" / "config.json"
    if vae.is_file():
        log.warning("%s: the plan samples latents; its VAE (scaling_factor %s) is not part of it", folder,
                    read_json(vae).get("scaling_factor", 0.18215))  # fmt: skip
    return Imported(
        _DiT(module), (c.in_channels, c.sample_size, c.sample_size), settings, origin, sources, classes, names,
        defaults={"scale": 4.0, "steps": 50}, role="latent", keeps_variance=False,
    )  # fmt: skip
