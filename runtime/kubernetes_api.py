"""The API server of the cluster, as a pod reaches it, for the one request of a defender: a patch of itself.

Where it is and who we are is read as every in-cluster client reads it: KUBERNETES_SERVICE_HOST and _PORT from
the environment; token, ca.crt and namespace from the folder that the service account is mounted in. Token
and CA are read anew for each request, for the cluster rotates them; a connection is for one request, for
there are hours between two.

    PATCH /api/v1/namespaces/{namespace}/pods/{name}     application/merge-patch+json (RFC 7386)
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote

import msgspec

from runtime import __version__
from runtime.errors import DefenderError

ANSWER_LINES_MAX: Final = 128
MESSAGE_BYTES_MAX: Final = 65_536
"""Of a refusal's body; a longer one is not read."""
MESSAGE_SHOWN: Final = 300
"""Characters of the server's message that an error has."""
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([2-5]\d\d)[ \r]")


class ApiUnusable(DefenderError):
    """The pod was given nothing to ask the API server with."""


class ApiUnanswered(DefenderError):
    """The API server could not be reached, or did not answer in HTTP, or not in time."""

    temporary = True


class ApiRefused(DefenderError):
    """The API server answered with another *status* than success; *retry_after_s* is 0 if unnamed."""

    def __init__(self, status: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"the API server answered {status}: {message or 'without a message'}")
        self.status, self.retry_after_s = status, retry_after_s


class _Status(msgspec.Struct):
    """The body of a refusal, `metav1.Status`, as far as it is of use."""

    message: str = ""


class ApiServer(NamedTuple):
    """Where it listens, and the folder of the pod's service account."""

    host: str
    port: int
    account: Path

    @classmethod
    def discovered(cls, environ: Mapping[str, str], account: Path) -> Self | None:
        """What the cluster tells its pods; None outside of one. Raises ApiUnusable when it makes no sense."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
        if not host or not port:
            return None
        if re.fullmatch(r"\d{1,5}", port) is None:
            raise ApiUnusable(f"KUBERNETES_SERVICE_PORT is {port!r}, not a port: leave it to the cluster")
        return cls(host, int(port), account)

    async def patch_pod(self, pod_name: str, patch: Mapping[str, Any], *, timeout_s: float) -> None:
        """Merges *patch* into the pod of our namespace, in *timeout_s* altogether.

        Raises ApiUnusable, ApiUnanswered, ApiRefused.
        """
        token, namespace = self._read("token"), self._read("namespace")
        context = self._context()
        body = msgspec.json.encode(patch)
        request = self._request(
            f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{pod_name}", token, body
        )
        try:
            async with asyncio.timeout(timeout_s):
                status, retry_after_s, message = await self._exchange(context, request)
        except TimeoutError as error:
            raise ApiUnanswered(f"{self.address} did not answer within {timeout_s:g} s") from error
        except (OSError, EOFError, ValueError) as error:
            raise ApiUnanswered(f"{self.address} cannot be asked: {error}") from error
        if status >= 300:
            raise ApiRefused(status, message, retry_after_s)

    @property
    def address(self) -> str:
        """As a Host header has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _read(self, name: str) -> str:
        try:
            text = (self.account / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise ApiUnusable(f"the service account's {name} cannot be read: {error}") from error
        if not text or not text.isprintable():  # a line break would begin another header
            raise ApiUnusable(
                f"the service account's {name} at {self.account / name} is not one line of text"
            )
        return text

    def _context(self) -> ssl.SSLContext:
        path = self.account / "ca.crt"
        try:
            context = ssl.create_default_context(cafile=str(path))
        except (OSError, ValueError) as error:
            raise ApiUnusable(
                f"the service account's CA at {path} cannot be read: {error.args[-1]}"
            ) from error
        # On by default from Python 3.13 on; the CAs of many clusters (EKS) lack an extension that it wants.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    def _request(self, path: str, token: str, body: bytes) -> bytes:
        lines = (
            f"PATCH {path}?fieldManager=defender HTTP/1.1",
            f"Host: {self.address}",
            f"Authorization: Bearer {token}",
            f"User-Agent: defender/{__version__}",
            "Accept: application/json",
            "Content-Type: application/merge-patch+json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        return "\r\n".join([*lines, "", ""]).encode("ascii") + body

    async def _exchange(self, context: ssl.SSLContext, request: bytes) -> tuple[int, float, str]:
        """(status, Retry-After in seconds, message); the body of a success, the whole pod, is left unread."""
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=context)
        try:
            writer.write(request)
            status, fields = await _head(reader)
            retry_after = fields.get("retry-after", "")
            retry_after_s = float(retry_after) if re.fullmatch(r"\d{1,9}", retry_after) else 0.0
            message = await _message(reader, fields) if status >= 300 else ""
            return status, retry_after_s, message
        finally:
            writer.transport.abort()  # nobody waits for the good-byes of TLS


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    line = await reader.readline()
    if (match := _STATUS_LINE.match(line)) is None:
        raise EOFError(f"it answered {line[:40]!r}" if line else "it closed the connection")
    fields: dict[str, str] = {}
    for _ in range(ANSWER_LINES_MAX):
        line = await reader.readline()
        if line in (b"\r\n", b"\n"):
            return int(match[1]), fields
        if not line:
            raise EOFError("it closed the connection within its answer")
        name, _, value = line.decode("latin-1").partition(":")
        fields[name.strip().lower()] = value.strip()
    raise EOFError(f"its answer has more than {ANSWER_LINES_MAX} lines before the body")


async def _message(reader: asyncio.StreamReader, fields: Mapping[str, str]) -> str:
    """The server's own words, where it sent them in one piece, as it does with what is short."""
    length = fields.get("content-length", "")
    if re.fullmatch(r"\d{1,6}", length) is None or int(length) > MESSAGE_BYTES_MAX:
        return ""
    body = await reader.readexactly(int(length))
    try:
        text = msgspec.json.decode(body, type=_Status).message
    except msgspec.DecodeError:  # a proxy's answer, or an overloaded server's plain text
        text = body.decode(errors="replace")
    return " ".join(text.split())[:MESSAGE_SHOWN]
