"""A stand-in for the Kubernetes API server, of which pods ask one thing: a merge patch of a pod.

    PATCH /api/v1/namespaces/{namespace}/pods/{name}      GET of the same

HTTPS by a certificate that the cluster's own CA signed; a bearer token of the service account; the role's
permission; RFC 7386 on the pod's metadata; refusals as `metav1.Status`, with the codes and words of the real
one. Written from the API reference and from what ReplicaSets do with pods (a `metadata.uid` that is not the
pod's is refused with 422). It may be told to refuse, to keep silent, to withdraw the permission.

    async with KubeApi(folder) as api:
        api.add(pod.settings)
        Pod(settings, **api.environ)
        deployment.deletion_cost = api.deletion_cost     # `scale` down then goes by the annotations

The folder has what a cluster mounts into a pod: token, ca.crt, namespace; and the keys.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import ssl
import subprocess
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec
from aiohttp import web

from bench.lab.errors import LabError
from runtime.deletion_cost import ANNOTATION

if TYPE_CHECKING:
    from bench.lab.pods import Pod
    from runtime.config import Settings

HOST: Final = "127.0.0.1"
NAMESPACE: Final = "fab"
ACCOUNT: Final = f"system:serviceaccount:{NAMESPACE}:defender"
MERGE_PATCH: Final = "application/merge-patch+json"
INT32: Final = range(-(2**31), 2**31)
_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_DAYS: Final = "2"


class Request(NamedTuple):
    """One that was answered, or was not."""

    at_s: float
    """By the monotonic clock."""
    pod_name: str
    status: int
    """0: it got no answer."""


class Refusal(NamedTuple):
    """What is answered instead of doing what was asked."""

    status: int
    message: str = "the test says so"
    retry_after: str = ""


class KubeApi:
    """One API server with one namespace. *port* is 0 before the block begins."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.pods: dict[str, dict[str, Any]] = {}
        """The metadata of each pod, by its name."""
        self.requests: list[Request] = []
        self.refusals: deque[Refusal] = deque()
        """Of the next requests that may do what they ask, one each."""
        self.permits_patch = True
        """Whether the account's role has the verb patch on pods."""
        self.is_silent = False
        """Whether requests are left without an answer."""
        self._version = 0
        self._runner: web.AppRunner | None = None
        self.server_context: ssl.SSLContext

    # --- what a cluster gives its pods, and its controllers ------------------------------------------

    @property
    def environ(self) -> dict[str, str]:
        """Of a pod: by it the API server is found."""
        return {
            "KUBERNETES_SERVICE_HOST": HOST,
            "KUBERNETES_SERVICE_PORT": str(self.port),
            "SERVICE_ACCOUNT_DIR": str(self.folder),
        }

    def add(self, settings: Settings) -> None:
        """The pod exists from now on, under the name and UID of its settings."""
        name = settings.pod_name
        self.pods[name] = {"name": name, "namespace": NAMESPACE, "uid": settings.pod_uid, "annotations": {}}
        self._touch(self.pods[name])

    def deletion_cost(self, pod: Pod) -> int:
        """As a ReplicaSet reads it: 0 of a pod that says nothing."""
        return self.cost_of(pod.settings.pod_name) or 0

    def cost_of(self, pod_name: str) -> int | None:
        """What the pod's annotation says; None while it has none, or is not there."""
        text = self.pods.get(pod_name, {}).get("annotations", {}).get(ANNOTATION)
        return None if text is None else int(text)

    def rotate_token(self) -> None:
        """The one before is good no more."""
        (self.folder / "token").write_text(secrets.token_urlsafe(48), encoding="ascii")

    # --- requests ---------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if self.is_silent:
            self.requests.append(Request(time.monotonic(), name, 0))
            await asyncio.Event().wait()
        try:
            pod = await self._asked(request, name)
        except _Refused as refused:
            self.requests.append(Request(time.monotonic(), name, refused.answer.status))
            return refused.answer
        self.requests.append(Request(time.monotonic(), name, 200))
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": pod}
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    async def _asked(self, request: web.Request, name: str) -> dict[str, Any]:
        """The pod as it is then. Raises _Refused, in the order in which the real one looks."""
        token = (self.folder / "token").read_text(encoding="ascii")
        if request.headers.get("Authorization") != f"Bearer {token}":
            raise _Refused(401, "Unauthorized", "Unauthorized")
        namespace, verb = request.match_info["namespace"], request.method.lower()
        if namespace != NAMESPACE or not (verb == "patch" and self.permits_patch):
            message = (
                f'pods "{name}" is forbidden: User "{ACCOUNT}" cannot {verb} resource "pods" in API group'
            )
            raise _Refused(403, f'{message} "" in the namespace "{namespace}"', "Forbidden")
        if self.refusals:
            refusal = self.refusals.popleft()
            raise _Refused(refusal.status, refusal.message, "", refusal.retry_after)
        if request.content_type != MERGE_PATCH:
            raise _Refused(415, f"the body of the request was in an unknown format, {request.content_type}")
        try:
            patch = msgspec.json.decode(await request.read(), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise _Refused(400, f"error decoding patch: {error}", "BadRequest") from None
        if name not in self.pods:
            raise _Refused(404, f'pods "{name}" not found', "NotFound")
        return self._patched(name, patch)

    def _patched(self, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        pod = self.pods[name]
        merged: dict[str, Any] = merge_patch({"metadata": pod}, patch)["metadata"]
        wrong = _invalid(pod, merged)
        if wrong:
            raise _Refused(422, f'Pod "{name}" is invalid: {wrong}', "Invalid")
        if merged.get("resourceVersion", pod["resourceVersion"]) != pod["resourceVersion"]:
            message = "the object has been modified; please apply your changes to the latest version"
            raise _Refused(
                409, f'Operation cannot be fulfilled on pods "{name}": {message} and try again', "Conflict"
            )
        if merged != pod:
            self._touch(merged)
        self.pods[name] = merged
        return merged

    def _touch(self, pod: dict[str, Any]) -> None:
        self._version += 1
        pod["resourceVersion"] = str(self._version)

    # --- it comes and goes --------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._make_certificates)
        (self.folder / "namespace").write_text(NAMESPACE, encoding="ascii")
        self.rotate_token()
        app = web.Application()
        app.router.add_route("*", "/api/v1/namespaces/{namespace}/pods/{name}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self.port, ssl_context=self.server_context).start()
        self.port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def _make_certificates(self) -> None:
        if shutil.which("openssl") is None:
            raise LabError("the API server's certificates are made by openssl, which is not here: install it")
        self.folder.mkdir(parents=True, exist_ok=True)
        # A CA that does not say what its key is for, as many clusters have; Python 3.13 would be stricter.
        (self.folder / "names").write_text(f"subjectAltName=IP:{HOST},DNS:kubernetes.default.svc\n")
        new_ca = ("req", "-x509", *_KEY, "-subj", "/CN=kubernetes", "-days", _DAYS)
        self._openssl(*new_ca, "-keyout", "ca.key", "-out", "ca.crt")
        self._openssl(
            "req", *_KEY, "-subj", "/CN=kube-apiserver", "-keyout", "server.key", "-out", "server.csr"
        )
        signed = ("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", _DAYS)
        self._openssl(*signed, "-extfile", "names", "-out", "server.crt")
        self.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server_context.load_cert_chain(self.folder / "server.crt", self.folder / "server.key")

    def _openssl(self, *words: str) -> None:
        done = subprocess.run(
            ["openssl", *words], cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LabError(f"openssl {words[0]} failed: {done.stderr.strip()[-300:]}")


class _Refused(Exception):
    def __init__(self, status: int, message: str, reason: str = "", retry_after: str = "") -> None:
        super().__init__(message)
        body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": status,
        }
        self.answer = web.Response(
            status=status,
            body=msgspec.json.encode(body),
            content_type="application/json",
            headers={"Retry-After": retry_after} if retry_after else None,
        )


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: *target* with *patch* merged into it; null removes. Pure."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def _invalid(pod: dict[str, Any], merged: dict[str, Any]) -> str:
    """What the API server's validation finds wrong with the new metadata, "" for nothing."""
    for name in ("uid", "name", "namespace"):
        if merged.get(name) != pod[name]:
            return f'metadata.{name}: Invalid value: "{merged.get(name)}": field is immutable'
    annotations = merged.get("annotations", {})
    for name, value in annotations.items():
        if not isinstance(value, str):
            return f"metadata.annotations[{name}]: Invalid value: {value!r}: must be a string"
    text = annotations.get(ANNOTATION, "0")
    if re.fullmatch(r"0|-?[1-9]\d*", text) is None or int(text) not in INT32:
        return f'metadata.annotations[{ANNOTATION}]: Invalid value: "{text}": must be a 32bit integer'
    return ""
