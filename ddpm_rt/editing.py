"""Editing: pictures and masks as callers have them, DDIM inversion, interpolation between latents. docs/editing.md."""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any

import numpy as np

from . import arrays
from .errors import OptionError, ShapeError
from .options import table


@functools.cache
def _levels(low: float, high: float) -> np.ndarray:
    """The 256 levels of uint8 as float32 in [low, high], each of which comes back as itself, rounded or truncated."""
    low32, scale = np.float32(low), np.float32(255.0 / (np.float64(np.float32(high)) - np.float64(np.float32(low))))
    levels = (low + np.arange(256) * ((high - low) / 255)).astype(np.float32)
    for _ in range(4):  # truncation loses what lies an ulp below its level
        short = np.floor((levels - low32) * scale) < np.arange(256)
        levels = np.where(short, np.nextafter(levels, np.float32(np.inf)), levels)
    return levels


def image_of(value: Any, field: str, n: int, model: Any) -> np.ndarray | None:
    """uint8 [n, H, W, C] or [H, W, C], or float32 [n, *shape] or shape  -> float32 [n or 1, *shape] in the data's range"""
    if value is None:
        return None
    array = np.asarray(arrays.view(value, field))
    shape = model.shape
    if array.dtype == np.uint8:
        if model.role != "image":
            raise ShapeError(
                f"{field}: expected float32 {[n, *shape]} for samples whose role is {model.role!r}, got uint8"
            )
        channels, height, width = shape
        pixels = array[None] if array.ndim == 3 else array
        if pixels.shape not in ((n, height, width, channels), (1, height, width, channels)):
            raise ShapeError(
                f"{field}: expected uint8 {[n, height, width, channels]}, or one of them, got {list(array.shape)}"
            )
        return np.ascontiguousarray(_levels(*map(float, model.range))[pixels].transpose(0, 3, 1, 2))
    batch = array[None] if array.shape == shape else array
    if array.dtype != np.float32 or batch.shape not in ((n, *shape), (1, *shape)):
        raise ShapeError(
            f"{field}: expected float32 {[n, *shape]}, or one of them, or uint8 pixels, got {array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(batch)


def mask_of(value: Any, n: int, model: Any) -> np.ndarray | None:
    """bool or float32, [H, W], [n, H, W] or [n, *shape] or shape  -> float32 [n or 1, *shape]; the engine checks the range."""
    if value is None:
        return None
    array = np.asarray(arrays.view(value, "mask"))
    shape = tuple(model.shape)
    plane = shape[1:] if len(shape) == 3 else None
    if array.dtype == bool:
        array = array.astype(np.float32)
    if array.dtype == np.float32:
        if array.shape == shape:
            return np.ascontiguousarray(array[None])
        if array.shape in ((n, *shape), (1, *shape)):
            return np.ascontiguousarray(array)
        if array.shape == plane:
            return np.ascontiguousarray(np.broadcast_to(array, (1, *shape)))
        if plane is not None and array.shape == (n, *plane):
            return np.ascontiguousarray(np.broadcast_to(array[:, None], (n, *shape)))
    wanted = (
        f"{list(plane)}, {[n, *plane]} or {[n, *shape]}" if plane is not None else f"{list(shape)} or {[n, *shape]}"
    )
    raise ShapeError(f"mask: expected bool or float32 {wanted}, got {array.dtype} {list(array.shape)}")


def arguments(given: dict[str, Any], n: int, model: Any) -> dict[str, Any]:
    """The options of editing, as the extension takes them."""

    def whole(field: str, most: int) -> int | None:
        return None if given[field] is None else arrays.integer(given[field], field, 1, most)

    strength = given["strength"]
    return {
        "image": image_of(given["image"], "image", n, model),
        "strength": None if strength is None else arrays.number(strength, "strength"),
        "mask": mask_of(given["mask"], n, model),
        "jump_length": whole("jump_length", 1000),
        "resamples": whole("resamples", 1000),
        "x0_every": whole("x0_every", 2**31 - 1),
    }


def slerp(a: Any, b: Any, t: Any) -> np.ndarray:
    """Spherical interpolation of latents (Shoemake 1985), sample by sample, as DDIM's figure 6 (2010.02502 appendix D.5).

    sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b, w the angle between the two; a straight line where they are parallel.

    Args:
        a, b: float arrays [n, *shape]; each of the n is interpolated by its own angle.
        t: one number, or one for each sample [n]; 0 is a, 1 is b.

    Returns:
        float32 [n, *shape]; computed in float64.

    Raises:
        ShapeError: other shapes. OptionError: opposite vectors, between which there is no shortest way; t not finite.
    """
    first, second = (np.asarray(arrays.view(v, f), np.float64) for v, f in ((a, "a"), (b, "b")))
    if first.shape != second.shape or first.ndim < 2:
        raise ShapeError(f"b: expected [n, *shape] as a, {list(first.shape)}, got {list(second.shape)}")
    n = len(first)
    share = np.asarray(t, np.float64)
    if share.shape not in ((), (n,)):
        raise ShapeError(f"t: expected one number or {n}, got {list(share.shape)}")
    if not np.isfinite(share).all():
        raise OptionError(f"t: expected finite numbers, got {t!r}")
    p, q = first.reshape(n, -1), second.reshape(n, -1)
    share = np.broadcast_to(share, (n,))
    norms = np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1)
    cosine = np.clip((p * q).sum(1) / np.where(norms == 0, 1, norms), -1, 1)
    angle, is_flat = np.arccos(cosine), (norms == 0) | (cosine > 1 - 1e-12)
    if ((cosine < -1 + 1e-12) & ~is_flat).any():
        raise OptionError("b: expected a vector that is not opposite to a, got one: no shortest way between them")
    sine = np.where(is_flat, 1, np.sin(angle))
    on_p = np.where(is_flat, 1 - share, np.sin((1 - share) * angle) / sine)
    on_q = np.where(is_flat, share, np.sin(share * angle) / sine)
    return (on_p[:, None] * p + on_q[:, None] * q).reshape(first.shape).astype(np.float32)


class Inversion:
    """`Engine.invert`."""

    def invert(self, images: Any, *, iterations: int = 1, labels: Any = -1, **options: Any) -> Any:
        """The first states from which DDIM with eta 0 makes these pictures: `sample(x_init=..., sampler="ddim")` leads back.

        The steps of DDIM, backwards (Song et al. 2010.02502 eq. 14; docs/editing.md says how near it comes). Give `sample` the
        same steps, labels and scale. Its x_init is the result; `latents` is the result over the sampler's initial sigma.

        Args:
            images: uint8 [n, H, W, C] or float32 [n, *shape] in the data's range.
            iterations: evaluations at each level. 1: the plain reversal; more bring the way back nearer, where they converge.
            labels: as in `sample`, but unconditional unless given.
            options: of `sample`: scale, w, steps, clip, grid, compat, sampler_options, strength, guidance, progress, callback.

        Returns:
            float32 [n, *shape], with the attributes of `Images`.

        Raises:
            OptionError: another sampler, eta, seed, or an option of pictures.
        """
        for name in ("seed", "seeds", "latents", "x_init", "image", "mask", "output", "n"):
            if name in options:
                raise OptionError(f"{name}: expected an option of invert, got one that only sample takes")
        array = np.asarray(arrays.view(images, "images"))
        n = len(array) if array.ndim == len(self._model.shape) + 1 else 1
        start = image_of(array, "images", n, self._model)
        iterations = arrays.integer(iterations, "iterations", 1, 1000)
        given = {row["name"]: None for row in table() if row["scope"] == "sample"}
        own = {"n": n, "labels": labels, "x_init": start, "seed": 0, "output": "float", "sampler": "ddim", "eta": 0.0}
        given |= own | {"on_error": "raise"} | {k: v for k, v in options.items() if k in given}
        return self._run(given, {k: v for k, v in options.items() if k not in given}, invert=iterations)


def read_picture(path: str | os.PathLike[str], field: str, channels: int) -> np.ndarray:
    """A picture file -> uint8 [H, W, C]; .npy or .npz (its first array) as it is.

    Raises:
        OptionError: there is no such file, or it is not a picture.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix in (".npy", ".npz"):
            found = np.load(path, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else found[found.files[0]]
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert({1: "L", 3: "RGB", 4: "RGBA"}.get(channels, "RGB")))
            return pixels if pixels.ndim == 3 else pixels[..., None]
    except ImportError as e:
        raise OptionError(f'{field}: expected Pillow to be installed: pip install "ddpm_rt[cli]"') from e
    except (OSError, ValueError) as e:
        raise OptionError(f"{field}: expected a picture file, .npy or .npz, got {str(path)!r}: {e}") from e


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """A grey picture, white keeps -> float32 [H, W]; .npy or .npz as they are."""
    pixels = read_picture(path, "mask", 1)
    return (pixels[..., 0] / np.float32(255)).astype(np.float32) if pixels.dtype == np.uint8 else pixels
