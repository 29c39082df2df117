"""What a cluster's policies ask of a pod: no root, nothing to write, limits, probes, least rights."""

from __future__ import annotations

from pathlib import Path

import pytest
from rendered import OVERLAYS, defenders, of_kind, pod_of, rendered, workloads

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)


@every_overlay
def test_no_pod_may_do_more_than_it_needs(overlay: Path) -> None:
    for workload in workloads(rendered(overlay)):
        pod = pod_of(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert pod["enableServiceLinks"] is False, "a Service's name would be the name of a setting"
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in security


@every_overlay
def test_every_pod_says_what_it_takes(overlay: Path) -> None:
    for workload in workloads(rendered(overlay)):
        for container in pod_of(workload)["containers"]:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            name, _, tag = container["image"].rpartition(":")
            assert name
            assert tag not in ("", "latest")


@every_overlay
def test_no_defender_keeps_anything_on_a_disk(overlay: Path) -> None:
    kinds = {manifest["kind"] for manifest in rendered(overlay)}
    assert "PersistentVolumeClaim" not in kinds
    for workload in workloads(rendered(overlay)):
        for volume in pod_of(workload)["volumes"]:
            assert "secret" in volume or volume["emptyDir"]["medium"] == "Memory", volume
        for container in pod_of(workload)["containers"]:
            written = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
            assert written in ([], ["/tmp"])
            parts = [mount for mount in container["volumeMounts"] if "subPath" in mount]
            assert not parts, "what is mounted by a subPath is never renewed"


@every_overlay
def test_a_pod_may_patch_pods_and_nothing_else(overlay: Path) -> None:
    manifests = rendered(overlay)
    rules = [rule for role in of_kind(manifests, "Role") for rule in role["rules"]]
    assert rules == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}]
    assert not of_kind(manifests, "ClusterRole", "ClusterRoleBinding")
    (binding,) = of_kind(manifests, "RoleBinding")
    for workload in defenders(manifests):
        assert pod_of(workload)["serviceAccountName"] == binding["subjects"][0]["name"]
    for workload in of_kind(manifests, "Job"):
        assert pod_of(workload)["automountServiceAccountToken"] is False


@every_overlay
def test_no_secret_is_in_a_manifest(overlay: Path) -> None:
    assert not of_kind(rendered(overlay), "Secret")
    for settings in of_kind(rendered(overlay), "ConfigMap"):
        assert not {name for name in settings["data"] if "PASSWORD" in name or "TOKEN" in name}


@every_overlay
def test_drains_and_networks_are_limited(overlay: Path) -> None:
    manifests = rendered(overlay)
    (budget,) = of_kind(manifests, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    (policy,) = of_kind(manifests, "NetworkPolicy")
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert all(rule.get("ports") for rule in policy["spec"]["egress"])
    for workload in defenders(manifests):
        keys = [spread["topologyKey"] for spread in pod_of(workload)["topologySpreadConstraints"]]
        assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
