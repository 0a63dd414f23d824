"""The table of options, from the extension: what signatures, the command line and docs/options.md are held against.

`python -m ddpm_rt.options` writes docs/options.md of this checkout (or the file it is given).
"""

from __future__ import annotations

import difflib
import functools
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from . import _core
from .errors import OptionError


@functools.cache
def table() -> tuple[dict[str, str], ...]:
    """Rows with name, aliases, type, range, default, scope ("engine" or "sample") and help."""
    return tuple(_core.options())


@functools.cache
def aliases(scope: str) -> dict[str, str]:
    """alias -> name"""
    rows = (row for row in table() if row["scope"] == scope and row["aliases"])
    return {alias: row["name"] for row in rows for alias in row["aliases"].split(",")}


@functools.cache
def choices(name: str) -> tuple[str, ...]:
    """What a "choice:a|b" option may be."""
    kind = next(row["type"] for row in table() if row["name"] == name)
    return tuple(kind.removeprefix("choice:").split("|"))


def resolve_aliases(scope: str, given: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the aliases in `extra` filled in under their own names.

    Raises:
        OptionError: `extra` has a name that is no alias, or one whose option is given as well.
    """
    known = aliases(scope)
    for name, value in extra.items():
        if name not in known:
            raise unknown(name, [*given, *known], scope)
        if given.get(known[name]) is not None:
            raise OptionError(f"{name}: expected one of {known[name]} and {name}, got both")
        given[known[name]] = value
    return given


def unknown(name: str, known: Iterable[str], scope: str) -> OptionError:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(near)}?" if near else "; docs/options.md lists them"
    return OptionError(f"{name}: expected an option of {scope}, got an unknown name{meant}")


def markdown() -> str:
    """docs/options.md"""
    lines = [
        "# Options",
        "",
        "One table in `csrc/options.cpp`; Python's signatures, the command line and the C structs follow it. This page is",
        "written by `python -m ddpm_rt.options`, and a test compares them.",
    ]
    titles = {
        "engine": ("Engine", "`ddpm_rt.Engine(plan, ...)`, and `ddpm-rt sample`."),
        "sample": ("A call", "`Engine.sample(n, ...)`, and `ddpm-rt sample`."),
    }
    for scope, (title, where) in titles.items():
        lines += [
            "",
            f"## {title}",
            "",
            where,
            "",
            "| option | type | range | default | what it does |",
            "|---|---|---|---|---|",
        ]
        for row in table():
            if row["scope"] != scope:
                continue
            name = ", ".join(f"`{n}`" for n in [row["name"], *filter(None, row["aliases"].split(","))])
            kind = row["type"].removeprefix("choice:").replace("|", ", ")
            lines.append(f"| {name} | {kind} | {row['range']} | {row['default']} | {row['help'].replace('|', ', ')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    default = pathlib.Path(__file__).resolve().parent.parent / "docs" / "options.md"
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    target.write_text(markdown(), encoding="utf-8")
