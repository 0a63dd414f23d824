"""`ddpm-rt sample`."""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
from typing import Any

import numpy as np

from . import editing, images, options
from .engine import Engine
from .errors import OptionError

MAX_N = 4096
_GIF_FRAMES = 60

DESCRIPTION = "Sample images from a plan file, or from a plan that comes with the package (digits)."
EXAMPLES = """examples:
  ddpm-rt sample digits -n 40 --scale 3 -o digits.png           a grid of forty digits
  ddpm-rt sample digits --label 7 -n 16 --seed 0 -o sevens.png  sixteen sevens; the same pixels every time
  ddpm-rt sample digits --label 0,1,2 -n 3 --outdir out/        one PNG each: out/000000.png, ...
  ddpm-rt sample digits -n 1000 -o samples.npz                  arr_0 uint8 [n, H, W, C], arr_1 labels
  ddpm-rt sample digits -n 16 --gif walk.gif                    the predictions on the way from noise to digits
  ddpm-rt sample digits --image 3.png --strength 0.6 --label 8 -n 4 -o eights.png   from a picture
  ddpm-rt sample digits --image 3.png --mask keep.png -n 4 -o filled.png            white of the mask is kept
  ddpm-rt sample my.plan --sampler ddpm --steps 1000 -o a.png --json
"""

# Options of the table that have no flag: arrays and functions; and output, which -o, --outdir and --gif decide.
NO_FLAG = ("latents", "x_init", "callback", "output")


def _pair(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


# A mapping is JSON, which the engine reads; a guide is another plan.
_TYPES = {"int": int, "float": float, "string": str, "mapping": str, "pair": _pair, "engine": str}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(usage_error=parser.error)
    parser.add_argument("model", metavar="MODEL", help="a plan file, or the name of a shipped plan")
    where = parser.add_argument_group("output")
    where.add_argument("-o", "--output", metavar="FILE", help="a PNG grid (.png) or guided-diffusion's layout (.npz)")
    where.add_argument("--outdir", metavar="DIR", help="one PNG per image")
    where.add_argument("--gif", metavar="FILE", help="the predictions of x0 from noise to image, as a moving grid")
    where.add_argument("--json", action="store_true", help="print seeds, labels and timing as JSON")
    groups = {scope: parser.add_argument_group(scope) for scope in ("sample", "engine")}
    for row in options.table():
        if row["name"] not in NO_FLAG:
            _add_flag(groups[row["scope"]], row)


def flags(row: dict[str, str]) -> list[str]:
    """--name, --alias; short and singular forms where people expect them."""
    extra = {"n": ["-n"], "labels": ["--label", "--labels"]}
    names = extra.get(row["name"], [f"--{row['name'].replace('_', '-')}"])
    return names + [f"--{alias.replace('_', '-')}" for alias in row["aliases"].split(",") if alias]


def _add_flag(group: Any, row: dict[str, str]) -> None:
    text = (row["help"] + (f" ({row['range']})" if row["range"] else "")).replace("%", "%%")
    keywords: dict[str, Any] = {"dest": row["name"], "default": None, "help": text}
    kind = row["type"]
    if kind == "bool":
        keywords["action"] = argparse.BooleanOptionalAction
    elif kind.startswith("choice:"):
        keywords["choices"] = options.choices(row["name"])
    else:
        keywords["type"] = _READERS.get(row["name"]) or _TYPES[kind]
        keywords["metavar"] = row["name"].upper() if row["name"] != "cond" else "NAME=FILE.npy"
        keywords["action"] = "append" if row["name"] == "cond" else "store"
    group.add_argument(*flags(row), **keywords)


def _labels(text: str) -> list[Any]:
    def one(word: str) -> Any:
        if word.lower() == "none":
            return None
        try:
            return int(word)
        except ValueError:
            return word

    return [one(word.strip()) for word in text.split(",")]


def _arrays(text: str) -> dict[str, Any]:
    """NAME=FILE.npy[,NAME=FILE.npy] -> name: array"""
    found = {}
    for word in text.split(","):
        name, _, file = word.partition("=")
        try:
            found[name] = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as e:
            raise argparse.ArgumentTypeError(f"expected NAME=FILE.npy with an array, got {word!r}: {e}") from e
    return found


def _negative(text: str) -> Any:
    return _arrays(text) if "=" in text else _labels(text)


def _seeds(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


_READERS = {  # image and mask are files
    "labels": _labels,
    "negative": _negative,
    "seeds": _seeds,
    "cond": _arrays,
    "image": str,
    "mask": str,
}


def main(args: argparse.Namespace) -> int:
    n = 1 if args.n is None else args.n
    if n > MAX_N:
        args.usage_error(
            f"n: expected at most {MAX_N}, got {n}; larger sets are the work of `generate`, which this version does not have: "
            "call Engine.sample from Python, some thousands at a time"
        )
    given: dict[str, dict[str, Any]] = {"engine": {}, "sample": {}}
    for row in options.table():
        if row["name"] not in NO_FLAG and (value := getattr(args, row["name"])) is not None:
            given[row["scope"]][row["name"]] = value
    sample = given["sample"]
    if "cond" in sample:
        sample["cond"] = {name: array for each in sample["cond"] for name, array in each.items()}
    for name in ("labels", "negative"):
        if isinstance(sample.get(name), list) and len(sample[name]) == 1:
            sample[name] = sample[name][0] if sample[name][0] is not None else -1
    if "x0_every" in sample and not (args.output or "").lower().endswith(".npz"):
        args.usage_error("x0_every: expected -o FILE.npz, which holds the predictions as x0")
    targets = [t for t in (args.output, args.outdir, args.gif) if t is not None]
    if not targets:
        args.usage_error("output: expected one of -o FILE, --outdir DIR, --gif FILE, got none")
    _check_targets(args)
    if args.gif is not None:
        given["engine"].setdefault("max_batch", n)
    with contextlib.ExitStack() as open_engines:
        engine = open_engines.enter_context(Engine(args.model, **given["engine"]))
        if "guide" in sample:
            sample["guide"] = open_engines.enter_context(Engine(sample["guide"], **given["engine"]))
        if "image" in sample:
            sample["image"] = editing.read_picture(sample["image"], "image", engine.info()["shape"][0])
        if "mask" in sample:
            sample["mask"] = editing.read_mask(sample["mask"])
        frames = _Frames(n) if args.gif is not None else None
        result = engine.sample(**{**sample, "n": n}, callback=frames)
        if args.output is not None:
            result.save(args.output)
        if args.outdir is not None:
            _save_each(result, pathlib.Path(args.outdir))
        if frames is not None:
            _save_gif(frames, result, args.gif)
        if args.json:
            print(json.dumps(_report(result, targets, engine.info())))
    return 0


def _check_targets(args: argparse.Namespace) -> None:
    """Refuses before the work what could not be written after it."""
    if args.output is not None and pathlib.Path(args.output).suffix.lower() not in (".png", ".npz"):
        raise OptionError(f"output: expected a name that ends in .png or .npz, got {args.output!r}")
    for path in (args.output, args.gif):
        if path is not None:
            images.check_writable(path)
    if args.outdir is not None:
        _make_folder(pathlib.Path(args.outdir))
        images.check_writable(pathlib.Path(args.outdir) / "000000.png")


def _make_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OptionError(f"outdir: expected a folder that can be made, got {str(folder)!r}: {e.strerror}") from e


def _save_each(result: images.Images, folder: pathlib.Path) -> None:
    written: list[pathlib.Path] = []
    try:
        for i in range(len(result)):
            written.append(result[i].save(folder / f"{i:06d}.png"))
    except BaseException:  # a full disk: all or nothing
        for path in written:
            path.unlink(missing_ok=True)
        raise


class _Frames:
    """A callback that keeps the predictions, thinned out so that their number stays bounded."""

    def __init__(self, n: int) -> None:
        self.n, self.frames, self.every, self.calls = n, [], 1, 0

    def __call__(self, row: int, rows: int, x0: np.ndarray) -> None:
        if len(x0) == self.n and self.calls % self.every == 0:
            self.frames.append(x0)
        self.calls += 1
        if len(self.frames) > 2 * _GIF_FRAMES:
            self.frames, self.every = self.frames[::2], 2 * self.every


def _save_gif(frames: _Frames, result: images.Images, path: str) -> None:
    try:
        from PIL import Image
    except ImportError as e:
        raise OptionError('gif: expected Pillow to be installed: pip install "ddpm_rt[cli]"') from e
    step = -(-len(frames.frames) // _GIF_FRAMES) or 1
    sheets = [images.grid(images.to_uint8(x0, result.data_range)) for x0 in frames.frames[::step]]
    sheets.append(images.grid(np.asarray(result)))
    pictures = [Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet) for sheet in sheets]
    with images.atomic_file(path) as file:
        pictures[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=[60] * (len(pictures) - 1) + [1500],
            loop=0,
        )


def _report(result: images.Images, targets: list[str], info: dict[str, Any]) -> dict[str, Any]:
    return {
        "output": targets,
        "n": len(result),
        "labels": result.labels.tolist(),
        "seeds": result.seeds.tolist(),
        "nfe": result.nfe,
        "seconds": result.seconds,
        "fingerprint": result.fingerprint,
        "backend": info["backend"],
        "precision": info["precision"],
    }
