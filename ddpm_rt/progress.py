"""A progress bar on a terminal, after half a second. tqdm draws it where tqdm is installed."""

from __future__ import annotations

import sys
import time
from typing import Any

_DELAY_SECONDS = 0.5


class Progress:
    """`update(row, rows)` as often as you like; `close()` leaves the terminal's line clean.

    `shown`: True, False, or None for "only if standard error is a terminal". Row 0 reads "compiling": until the first row is
    done, the backend is still building the network for this batch.
    """

    def __init__(self, shown: bool | None, what: str) -> None:
        self._shown = sys.stderr is not None and sys.stderr.isatty() if shown is None else bool(shown)
        self._what = what
        self._start = time.monotonic()
        self._bar: Any = None
        self._width = 0

    def update(self, row: int, rows: int) -> None:
        if not self._shown or time.monotonic() - self._start < _DELAY_SECONDS:
            return
        if self._bar is None:
            self._bar = self._open()
        text = self._what if row > 0 else f"{self._what}: compiling"
        if self._bar is not False:
            self._bar.total = rows or None
            self._bar.set_description(text, refresh=False)
            self._bar.update(row - self._bar.n)
            self._bar.refresh()
            return
        elapsed = time.monotonic() - self._start
        line = f"{text} {row}/{rows} [{elapsed:.0f} s]"
        self._width = max(self._width, len(line))
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()

    def close(self) -> None:
        if self._bar is None:
            return
        if self._bar is not False:
            self._bar.close()
        else:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()

    def _open(self) -> Any:
        try:
            from tqdm import tqdm
        except ImportError:
            return False
        return tqdm(total=None, leave=False, file=sys.stderr, unit="row", dynamic_ncols=True)
