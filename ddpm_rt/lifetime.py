"""How engines end: with their process, and before the interpreter does."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import _core
    from .engine import Engine

_EXIT_SECONDS = 2.0  # how long the interpreter's exit may wait for daemon threads to come back
engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def close(core: _core.Engine, pid: int) -> None:
    if pid == os.getpid():
        core.close()


@atexit.register
def _let_threads_return() -> None:
    """Behind the closing of all engines at exit: a daemon thread that asked for the GIL from inside the extension once
    the interpreter is going down would be unwound through C++, which ends the process with an abort."""
    end = time.monotonic() + _EXIT_SECONDS
    while any(e._running and e._pid == os.getpid() for e in list(engines)) and time.monotonic() < end:
        time.sleep(0.001)
