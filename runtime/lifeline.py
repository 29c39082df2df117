"""No process outlives its parent: the kernel kills it (PR_SET_PDEATHSIG), a SIGKILLed parent included.

The signal follows the parent's *thread* that forked, so what is started like this is started in a thread
that lives as long as the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)
"""Loaded beforehand: between fork and exec nothing may be imported."""


def die_with_parent() -> None:
    """From here on; a parent that ended before is for the caller to notice."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def die_with(parent_pid: int) -> None:
    """The same, and at once if *parent_pid* is not the parent any more. Runs between fork and exec."""
    die_with_parent()
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
