"""Every overlay renders, is what Kubernetes' schemas ask for, and says what a defender understands."""

from __future__ import annotations

import copy
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from rendered import KUBERNETES, OVERLAYS, defenders, environment, of_kind, pod_of, rendered, workloads
from rendered import problems_of_settings as problems

from runtime import config

VERSIONS = ("1.29", "1.32")
"""Of Kubernetes: the oldest that the manifests are for, and that of the kubectl that rendered them."""
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""Of operators; their fields are looked at one by one below."""
PATHS = {"/startupz", "/readyz", "/livez"}

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)


@every_overlay
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(overlay: Path, version: str) -> None:
    for manifest in rendered(overlay):
        if manifest["kind"] not in FOREIGN:
            kubernetes_validate.validate(manifest, version, strict=True)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "defender"


def test_a_field_that_is_none_is_found() -> None:
    manifest = copy.deepcopy(defenders(rendered(OVERLAYS[0]))[0])
    pod_of(manifest)["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


@every_overlay
def test_every_setting_is_known_and_every_value_is_understood(overlay: Path) -> None:
    assert list(problems(rendered(overlay))) == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("WORKERZ", "2", "no setting is called WORKERZ"), ("WORKERS", "two", "WORKERS")],
)
def test_a_wrong_setting_is_found(name: str, value: str, told: str) -> None:
    manifests = copy.deepcopy(rendered(OVERLAYS[0]))
    (settings,) = of_kind(manifests, "ConfigMap")
    settings["data"][name] = value
    assert any(told in problem for problem in problems(manifests))


@every_overlay
def test_probes_and_ports_are_those_of_the_http_server(overlay: Path) -> None:
    for workload in defenders(rendered(overlay)):
        (container,) = pod_of(workload)["containers"]
        settings = config.load(environment(rendered(overlay), workload))
        assert [port["containerPort"] for port in container["ports"]] == [settings.http_port]
        probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
        assert {probe["path"] for probe in probes} == PATHS
        assert {probe["port"] for probe in probes} == {container["ports"][0]["name"]}


@every_overlay
def test_a_pod_has_the_time_to_hand_everything_over(overlay: Path) -> None:
    for workload in defenders(rendered(overlay)):
        settings = config.load(environment(rendered(overlay), workload))
        leaves_s = settings.successor_wait_s + settings.handoff_s + settings.drain_s
        assert pod_of(workload)["terminationGracePeriodSeconds"] > 1.5 * leaves_s
        lease_s = settings.lease_ttl_s
        (container,) = pod_of(workload)["containers"]
        live = container["livenessProbe"]
        assert live["periodSeconds"] * live["failureThreshold"] < lease_s


@every_overlay
def test_tracks_have_ids_of_their_own_and_enough_of_them(overlay: Path) -> None:
    taken: set[int] = set()
    for workload in defenders(rendered(overlay)):
        ids = set(config.load(environment(rendered(overlay), workload)).ids)
        assert not ids & taken
        assert workload["spec"].get("replicas", 1) <= len(ids)
        taken |= ids


@every_overlay
def test_selectors_find_their_pods(overlay: Path) -> None:
    manifests = rendered(overlay)
    labelled = [workload["spec"]["template"]["metadata"]["labels"] for workload in workloads(manifests)]
    selectors = [
        *(one["spec"]["selector"]["matchLabels"] for one in defenders(manifests)),
        *(one["spec"]["selector"] for one in of_kind(manifests, "Service")),
        *(one["spec"]["selector"]["matchLabels"] for one in of_kind(manifests, "PodDisruptionBudget")),
    ]
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in labelled), selector
    own = [one["spec"]["selector"]["matchLabels"] for one in defenders(manifests)]
    for selector in own:  # no Deployment adopts another's pods
        assert sum(selector.items() <= labels.items() for labels in labelled) == 1, selector


def test_the_update_is_that_of_the_design() -> None:
    (deployment,) = of_kind(rendered(KUBERNETES / "base"), "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 10, "maxUnavailable": 0}


def test_production_has_256_partitions_in_four_streams_of_three_replicas() -> None:
    manifests = rendered(KUBERNETES / "overlays" / "production")
    (deployment,) = of_kind(manifests, "Deployment")
    settings = config.load(environment(manifests, deployment))
    assert (settings.partitions, settings.names.shards, settings.stream_replicas) == (256, 4, 3)
    assert deployment["spec"]["replicas"] == 30


def test_a_stateful_set_claims_by_ordinals() -> None:
    manifests = rendered(KUBERNETES / "overlays" / "statefulset")
    (stateful_set,) = of_kind(manifests, "StatefulSet")
    assert config.load(environment(manifests, stateful_set)).identity == "ordinal"
    assert "volumeClaimTemplates" not in stateful_set["spec"]


def test_the_operators_rules_are_prometheus_own() -> None:
    (rule,) = of_kind(rendered(KUBERNETES / "overlays" / "production"), "PrometheusRule")
    alerts = yaml.safe_load((KUBERNETES.parent / "prometheus" / "alerts.yaml").read_text())
    assert rule["spec"] == alerts, "write deploy/prometheus/alerts.yaml into prometheus-rule.yaml"


def test_prometheus_scrapes_the_service() -> None:
    manifests = rendered(KUBERNETES / "overlays" / "production")
    (monitor,) = of_kind(manifests, "ServiceMonitor")
    (service,) = of_kind(manifests, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [end["port"] for end in monitor["spec"]["endpoints"]] == [service["spec"]["ports"][0]["name"]]


def test_the_scaler_scales_what_is_there_within_the_ids() -> None:
    manifests = rendered(KUBERNETES / "overlays" / "autoscale")
    (scaled,) = of_kind(manifests, "ScaledObject")
    (deployment,) = of_kind(manifests, "Deployment")
    target = scaled["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"], "an apply would set back what the scaler chose"
    ids = config.load(environment(manifests, deployment)).ids
    assert scaled["spec"]["maxReplicaCount"] <= len(ids)
