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
    "Deployment": {
        "metadata.name": "defender-7c9f-x2x4z",
        "metadata.labels['pod-template-hash']": "7c9f",
    },
    "StatefulSet": {
        "metadata.name": "defender-0",
        "metadata.labels['controller-revision-hash']": "defender-7c9f",
    },
}
"""What the platform puts where a field of the pod is asked for, by who makes the pod; the UID for all."""
POD_UID: Final = "5c8a1c52-8f7c-4b5c-9e67-2f4e0d8a7c11"
RENDER_S_MAX: Final = 60

Manifest = dict[str, Any]


@cache
def rendered(overlay: Path) -> list[Manifest]:
    """The objects of an overlay; skips the test where there is no kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", str(overlay)],
        capture_output=True,
        text=True,
        check=False,
        timeout=RENDER_S_MAX,
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def secrets() -> dict[str, dict[str, str]]:
    """The keys of each Secret that the manifests may name."""
    text = (KUBERNETES / "secrets.example.yaml").read_text()
    return {one["metadata"]["name"]: one["stringData"] for one in yaml.safe_load_all(text)}


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


def settings_of(manifests: list[Manifest], workload: Manifest, root: Path) -> Settings:
    """What the pod's container would load, its Secrets mounted below *root*. Raises SettingsError."""
    mount(workload, root)
    environ = environment(manifests, workload)
    return config.load(
        {name: str(root) + value if value.startswith("/") else value for name, value in environ.items()}
    )


def mount(workload: Manifest, root: Path) -> None:
    """Writes the files that the pod's only container sees of its Secrets."""
    pod = pod_of(workload)
    (container,) = pod["containers"]
    mounted = {mount["name"]: root / mount["mountPath"].lstrip("/") for mount in container["volumeMounts"]}
    for volume in pod["volumes"]:
        if "secret" not in volume:
            continue
        folder = mounted[volume["name"]]
        folder.mkdir(parents=True, exist_ok=True)
        for key, text in secrets()[volume["secret"]["secretName"]].items():
            (folder / key).write_text(text)


def environment(manifests: list[Manifest], workload: Manifest) -> dict[str, str]:
    """The environment of the only container."""
    (container,) = pod_of(workload)["containers"]
    maps = {one["metadata"]["name"]: one["data"] for one in of_kind(manifests, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]
        else:
            found |= secrets()[source["secretRef"]["name"]]
    for variable in container.get("env", ()):
        found[variable["name"]] = _value(variable, workload)
    return found


def _value(variable: Mapping[str, Any], workload: Manifest) -> str:
    if "value" in variable:
        return str(variable["value"])
    path = variable["valueFrom"]["fieldRef"]["fieldPath"]
    if path == "metadata.uid":
        return POD_UID
    if path == "metadata.labels['track']":
        return str(workload["spec"]["template"]["metadata"]["labels"]["track"])
    return DOWNWARD[workload["kind"]][path]


def problems_of_settings(manifests: list[Manifest], root: Path) -> Iterator[str]:
    """What `defender config` would say of each container's environment; *root* is a folder to mount in."""
    known = {name.upper() for name in Settings.__struct_fields__}
    for workload in workloads(manifests):
        name = workload["metadata"]["name"]
        unknown = sorted(set(environment(manifests, workload)) - known)
        yield from (f"{name}: no setting is called {one}" for one in unknown)
        try:
            settings_of(manifests, workload, root / name)
        except SettingsError as error:
            yield f"{name}: {error}"
