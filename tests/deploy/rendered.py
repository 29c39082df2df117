"""The manifests as `kubectl kustomize` renders them, and what the tests ask of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from runtime import config
from runtime.config import Settings
from runtime.errors import SettingsError

KUBERNETES: Final = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS: Final = (KUBERNETES / "base", *sorted(path.parent for path in KUBERNETES.glob("overlays/*/kust*")))
DOWNWARD: Final = {
    "metadata.name": "defender-7c9f-x2x4z",
    "metadata.uid": "5c8a1c52-8f7c-4b5c-9e67-2f4e0d8a7c11",
    "metadata.labels['pod-template-hash']": "7c9f",
    "metadata.labels['controller-revision-hash']": "defender-7c9f",
}
"""What the platform puts where a field of the pod is asked for."""

Manifest = dict[str, Any]


@cache
def rendered(overlay: Path) -> list[Manifest]:
    """The objects of an overlay; skips the test where there is no kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def workloads(manifests: list[Manifest]) -> list[Manifest]:
    """What makes pods."""
    return of_kind(manifests, "Deployment", "StatefulSet", "Job")


def defenders(manifests: list[Manifest]) -> list[Manifest]:
    return of_kind(manifests, "Deployment", "StatefulSet")


def pod_of(workload: Manifest) -> Manifest:
    """The pod's spec."""
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def environment(manifests: list[Manifest], workload: Manifest) -> dict[str, str]:
    """The environment of the only container, without what comes from a Secret."""
    (container,) = pod_of(workload)["containers"]
    maps = {one["metadata"]["name"]: one["data"] for one in of_kind(manifests, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]
    for variable in container.get("env", ()):
        found[variable["name"]] = _value(variable, workload)
    return found


def _value(variable: Mapping[str, Any], workload: Manifest) -> str:
    if "value" in variable:
        return str(variable["value"])
    path = variable["valueFrom"]["fieldRef"]["fieldPath"]
    if path == "metadata.labels['track']":
        return str(workload["spec"]["template"]["metadata"]["labels"]["track"])
    if workload["kind"] == "StatefulSet" and path == "metadata.name":
        return "defender-0"
    return DOWNWARD[path]


def problems_of_settings(manifests: list[Manifest]) -> Iterator[str]:
    """What `defender config` would say of each container's environment."""
    known = {name.upper() for name in Settings.__struct_fields__}
    for workload in workloads(manifests):
        name = workload["metadata"]["name"]
        environ = environment(manifests, workload)
        yield from (f"{name}: no setting is called {one}" for one in sorted(set(environ) - known))
        try:
            config.load(environ)
        except SettingsError as error:
            yield f"{name}: {error}"
