"""The pod's HTTP port: probes for the platform, metrics for Prometheus, an index for a person.

    /livez /readyz /startupz   200 {"ok": true, "why": []} or 503 {"ok": false, "why": ["the lease ran out"]}
    /metrics                   Prometheus' text format
    /ring /ring.json           the fleet as this pod sees it; /ring is JSON too for who accepts only that
    /                          the list of these

The answers come from `Probes`, which says why not; nothing is cached. A further page is a row of the table
in `_pages`.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from aiohttp import web

from runtime.errors import SettingsError
from runtime.ring_page import RingSource, as_html, as_json

Handler = Callable[[web.Request], Awaitable[web.Response]]

_HEADERS = {"Cache-Control": "no-store"}
_SHUTDOWN_S = 0.5
"""How long `Server.close` waits for requests in hand; a drain has 10 s for everything."""


class Probes(Protocol):
    """What the platform asks. Each method lists the reasons why not; an empty list is yes."""

    def live(self) -> list[str]:
        """Why the pod should be restarted."""
        ...

    def ready(self) -> list[str]:
        """Why the pod does not serve (a warm standby is ready)."""
        ...

    def started(self) -> list[str]:
        """Why the start is not over."""
        ...


class Rendered(Protocol):
    """A page that is made anew for each request, such as `runtime.metrics.Metrics`."""

    @property
    def content_type(self) -> str: ...

    def render(self) -> bytes: ...


class Server:
    """A listening server. ``port`` is the one that it got, also where 0 was asked for."""

    def __init__(self, runner: web.AppRunner, port: int) -> None:
        self._runner = runner
        self.port = port

    async def close(self) -> None:
        """Stops listening, and waits a moment for requests in hand. May be called again."""
        await self._runner.cleanup()


async def serve(host: str, port: int, probes: Probes, metrics: Rendered, ring: RingSource) -> Server:
    """Starts the server in the running loop.

    Raises SettingsError, naming HTTP_PORT or HTTP_HOST, when it cannot listen there.
    """
    app = web.Application()
    pages = _pages(probes, metrics, ring)
    app.router.add_get("/", _index(pages))
    for path, (_, handler) in pages.items():
        app.router.add_get(path, handler)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise _cannot_listen(host, port, error) from error
    return Server(runner, int(runner.addresses[0][1]))


def _pages(probes: Probes, metrics: Rendered, ring: RingSource) -> dict[str, tuple[str, Handler]]:
    return {
        "/livez": ("is the pod alive, or should it be restarted", _probe(probes.live)),
        "/readyz": ("does the pod serve", _probe(probes.ready)),
        "/startupz": ("is the start over", _probe(probes.started)),
        "/metrics": ("metrics for Prometheus", _rendered(metrics)),
        "/ring": ("the fleet as this pod sees it", _ring(ring)),
        "/ring.json": ("the same as JSON", _ring(ring, only_json=True)),
    }


def _probe(check: Callable[[], list[str]]) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        why = check()
        return web.Response(
            status=503 if why else 200,
            body=msgspec.json.encode({"ok": not why, "why": why}) + b"\n",
            content_type="application/json",
            headers=_HEADERS,
        )

    return answer


def _rendered(page: Rendered) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=page.render(), headers={**_HEADERS, "Content-Type": page.content_type})

    return answer


def _ring(ring: RingSource, *, only_json: bool = False) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        report = ring.ring()
        if only_json or _wants_json(request):
            return web.Response(body=as_json(report), content_type="application/json", headers=_HEADERS)
        return web.Response(body=as_html(report), content_type="text/html", charset="utf-8", headers=_HEADERS)

    return answer


def _wants_json(request: web.Request) -> bool:
    """By ``?format=json``, or by an Accept that names JSON and not HTML, as programs send it."""
    accepts = request.headers.get("Accept", "")
    return request.query.get("format") == "json" or (
        "application/json" in accepts and "text/html" not in accepts
    )


def _index(pages: dict[str, tuple[str, Handler]]) -> Handler:
    lines = [f"{path:<12}{meaning}" for path, (meaning, _) in pages.items()]
    text = "\n".join(["Defender", "", *lines, ""])

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, headers=_HEADERS)

    return answer


def _cannot_listen(host: str, port: int, error: OSError) -> SettingsError:
    if error.errno == errno.EADDRINUSE:
        problem = f"{port} is taken at {host}: choose another, or 0 for a free one"
        return SettingsError("HTTP_PORT", problem)
    if error.errno == errno.EACCES:
        return SettingsError("HTTP_PORT", f"{port} is not ours to open: choose one above 1023")
    return SettingsError("HTTP_HOST", f"cannot listen at {host!r} ({error}): give an address of this machine")
