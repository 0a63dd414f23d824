"""What a build is doing, on a terminal: one line that is written over, after half a second."""

from __future__ import annotations

import shutil
import sys
import time

_DELAY_SECONDS, _EVERY_SECONDS = 0.5, 0.1


class Status:
    """`update` as often as you like; `close` leaves the terminal's line clean.

    shown: None for "only if standard error is a terminal".
    """

    def __init__(self, shown: bool | None = None) -> None:
        self._shown = sys.stderr is not None and sys.stderr.isatty() if shown is None else shown
        self._start = time.monotonic()
        self._written = 0.0
        self._width = 0

    def update(self, network: str, phase: str, step: int, steps: int) -> None:
        now = time.monotonic()
        if not self._shown or now - self._start < _DELAY_SECONDS or now - self._written < _EVERY_SECONDS:
            return
        self._written = now
        line = f"{network}: {phase} {step}/{steps} [{now - self._start:.0f} s]"[
            : shutil.get_terminal_size().columns - 1
        ]
        self._width = max(self._width, len(line))
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()

    def close(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
