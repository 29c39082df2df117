"""Waiting by polling, with a limit."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, overload

from bench.lab.errors import NotInTime

POLL_S: Final = 0.005
T = TypeVar("T")


@overload
async def until(
    condition: Callable[[], Awaitable[T]],
    *,
    deadline_s: float = ...,
    what: str | Callable[[], str],
    poll_s: float = ...,
) -> T: ...
@overload
async def until(
    condition: Callable[[], T],
    *,
    deadline_s: float = ...,
    what: str | Callable[[], str],
    poll_s: float = ...,
) -> T: ...
async def until(
    condition: Callable[[], Any],
    *,
    deadline_s: float = 10.0,
    what: str | Callable[[], str],
    poll_s: float = POLL_S,
) -> Any:
    """Polls *condition*, a plain or a coroutine function, until it is true; returns its value.

    Raises NotInTime after *deadline_s*; *what* says what was waited for, a function says it as it is then.
    """
    end_s = time.monotonic() + deadline_s
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if time.monotonic() > end_s:
            raise NotInTime(f"not within {deadline_s:g} s: {what() if callable(what) else what}")
        await asyncio.sleep(poll_s)
