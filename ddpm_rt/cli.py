"""The command line. A command's module is imported only when that command is asked for.

Exit codes: 0 done; 1 an error, named on standard error; 2 the command line itself is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import sys
from collections.abc import Sequence

from .errors import DdpmError

# command -> (module, extra that its imports need, line in the overview)
COMMANDS = {
    "sample": ("ddpm_rt.cli_sample", "cli", "images from a plan to a PNG grid, single PNGs, an npz or a GIF"),
    "train": ("ddpm_rt.training.command", "train", "train a DDPM on a folder of images or on bundled digits"),
    "export": ("ddpm_rt.export.command", "export", "make a plan of a checkpoint or an ONNX model"),
    "build": ("ddpm_rt.build.command", "tensorrt", "TensorRT engines of a plan's networks, ahead of time"),
    "inspect": ("ddpm_rt.plan", "cli", "what is in a plan file; --verify checks every byte"),
    "evaluate": ("ddpm_rt.evaluation.command", "eval", "quality of a model's samples"),
    "doctor": ("ddpm_rt.doctor", "cli", "what is installed here, which backends work, and why not"),
}

EXAMPLES = """examples:
  ddpm-rt sample digits --label 7 -n 16 --scale 3 --seed 0 -o out.png
  ddpm-rt inspect digits --verify
  ddpm-rt doctor
  python -m ddpm_rt COMMAND --help      has examples for each command
"""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from . import _core

        print(f"ddpm_rt {_core.__version__}")
        parser.exit()


class _CmakeDir(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from . import _core

        print(pathlib.Path(_core.__file__).resolve().parent / "lib" / "cmake" / "ddpm_rt")
        parser.exit()


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser with the options of `command`; the other commands are names with a line each."""
    parser = argparse.ArgumentParser(
        prog="ddpm-rt",
        description="Sample from trained diffusion models, and make plans of them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    parser.add_argument("--cmake-dir", action=_CmakeDir, nargs=0, help="print the folder for CMake's ddpm_rt_DIR")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, (module, _, line) in COMMANDS.items():
        if name != command:
            subparsers.add_parser(name, help=line, add_help=False)
            continue
        about = importlib.import_module(module)  # DESCRIPTION, EXAMPLES, add_options(parser), main(args)
        about.add_options(
            subparsers.add_parser(
                name,
                help=line,
                description=about.DESCRIPTION,
                epilog=about.EXAMPLES,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in arguments if not a.startswith("-")), None)
    try:
        parser = build_parser(command)
        args = parser.parse_args(arguments)
        if args.command is None:
            parser.print_help()
            return 0
        return importlib.import_module(COMMANDS[args.command][0]).main(args) or 0
    except DdpmError as e:
        return fail(f"{type(e).__name__}: {e}")
    except ImportError as e:
        package = (e.name or "").partition(".")[0]
        if e.name == "ddpm_rt._core":
            return fail("the C++ extension is not built here: pip install -e . in the folder of the source")
        if package in ("", "ddpm_rt") or command not in COMMANDS:
            raise
        return fail(f'{command} needs {package}, which is not installed: pip install "ddpm_rt[{COMMANDS[command][1]}]"')
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError:  # the reader of standard output has left; the interpreter must not flush into it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def fail(message: str, code: int = 1) -> int:
    print(f"ddpm-rt: {message}", file=sys.stderr)
    return code
