"""The user's cache of engines: KEY.engine with its card KEY.json, KEY from everything that decides the engine.

csrc/native_engine.h reads it, and loads only what its owner alone can write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError

MOST_BYTES = 16 << 30  # beyond it, the engines used longest ago go
KEYED = ("library", "version", "network", "source", "precision", "profiles", "capabilities", "recipe")


def folder_of(cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """FOLDER/engines, made where it is missing, for its owner alone. None: the user's cache folder.

    OptionError: it cannot be made, or others can write to it.
    """
    folder = (pathlib.Path(cache_dir).absolute() if cache_dir is not None else _user_cache()) / "engines"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.lstat()
    except OSError as e:
        raise OptionError(f"cache_dir: expected a folder that can be written, got {str(folder)!r}: {e.strerror}") from e
    if state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise OptionError(
            f"cache_dir: expected {str(folder)!r} to be yours and writable by you alone, got mode {state.st_mode & 0o777:o} "
            f"of user {state.st_uid}; chmod 700 {folder}"
        )
    return folder


def _user_cache() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (pathlib.Path(base) if base.startswith("/") else pathlib.Path.home() / ".cache") / "ddpm_rt"


def key_of(card: Mapping[str, Any]) -> str:
    text = json.dumps({k: card[k] for k in KEYED}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def find(folder: pathlib.Path, card: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]] | None:
    """The engine with its whole card, if it is there and undamaged."""
    path = folder / f"{key_of(card)}.engine"
    try:
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        engine = path.read_bytes()
        if stored["sha256"] != hashlib.sha256(engine).hexdigest():
            return None
        os.utime(path.with_suffix(".json"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return engine, stored


def store(folder: pathlib.Path, card: Mapping[str, Any], engine: bytes) -> tuple[pathlib.Path, dict[str, Any]]:
    """Path of the engine, and its card with `bytes` and `sha256`. The engine is whole before its card names it."""
    path = folder / f"{key_of(card)}.engine"
    whole = {**card, "bytes": len(engine), "sha256": hashlib.sha256(engine).hexdigest()}
    _write(path, engine)
    _write(path.with_suffix(".json"), json.dumps(whole, indent=1).encode())
    _prune(folder, keep=path)
    return path, whole


def _write(path: pathlib.Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)  # mode 600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except OSError as e:
        raise OptionError(f"cache_dir: expected room for {len(data)} bytes, got {str(path)!r}: {e.strerror}") from e
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _prune(folder: pathlib.Path, keep: pathlib.Path) -> None:
    cards = []
    for card in folder.glob("*.json"):
        with contextlib.suppress(OSError):
            cards.append((card.stat().st_mtime, card.with_suffix(".engine").stat().st_size, card))
    total = 0
    for _, size, card in sorted(cards, reverse=True):
        total += size
        if total > MOST_BYTES and card.with_suffix(".engine") != keep:
            card.unlink(missing_ok=True)
            card.with_suffix(".engine").unlink(missing_ok=True)
