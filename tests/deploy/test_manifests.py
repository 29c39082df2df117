"""Every overlay renders, is what Kubernetes' schemas ask for, and says what a defender understands."""

from __future__ import annotations

import copy
from pathlib import Path

import aiohttp
import jsonschema
import kubernetes_validate
import pytest
import yaml
from operators import SCHEMAS
from rendered import (
    KUBERNETES,
    OVERLAYS,
    Manifest,
    defenders,
    of_kind,
    pod_of,
    rendered,
    secrets,
    settings_of,
    workloads,
)
from rendered import problems_of_settings as problems

from runtime.config import Identity, RingJoin
from runtime.http import serve

VERSIONS = ("1.29", "1.32")
"""Of Kubernetes: the oldest that the manifests are for, and that of the kubectl that rendered them."""
OVERLAY = KUBERNETES / "overlays"
PROBES = {"startup": "/startupz", "readiness": "/readyz", "liveness": "/livez"}

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)


class Well:
    """A pod that has nothing to complain of, and nothing to tell."""

    content_type = "text/plain"

    def live(self) -> list[str]:
        return []

    ready = started = live

    def render(self) -> bytes:
        return b""


def validate(manifest: Manifest, version: str) -> None:
    schema = SCHEMAS.get(manifest["kind"])
    if schema is None:
        kubernetes_validate.validate(manifest, version, strict=True)
    else:
        jsonschema.validate(manifest, schema)


def only(manifests: list[Manifest], kind: str, name: str = "defender") -> Manifest:
    (found,) = (one for one in of_kind(manifests, kind) if one["metadata"]["name"] == name)
    return found


@every_overlay
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(overlay: Path, version: str) -> None:
    for manifest in rendered(overlay):
        validate(manifest, version)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "defender"


def test_a_field_that_is_none_is_found() -> None:
    manifest = copy.deepcopy(only(rendered(KUBERNETES / "base"), "Deployment"))
    pod_of(manifest)["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        validate(manifest, VERSIONS[0])
    monitor = copy.deepcopy(only(rendered(OVERLAY / "production"), "ServiceMonitor"))
    monitor["spec"]["endpoints"][0]["scrapeInterval"] = "5s"
    with pytest.raises(jsonschema.ValidationError, match="scrapeInterval"):
        validate(monitor, VERSIONS[0])


@every_overlay
def test_every_setting_is_known_and_every_value_is_understood(overlay: Path, tmp_path: Path) -> None:
    assert list(problems(rendered(overlay), tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("WORKERZ", "2", "no setting is called WORKERZ"),
        ("WORKERS", "two", "WORKERS"),
        ("NATS_NKEY_SEED", "/etc/defender/nats/defender.seed", "is not a file"),
    ],
)
def test_a_wrong_setting_is_found(name: str, value: str, told: str, tmp_path: Path) -> None:
    manifests = copy.deepcopy(rendered(KUBERNETES / "base"))
    (settings,) = of_kind(manifests, "ConfigMap")
    settings["data"][name] = value
    assert any(told in problem for problem in problems(manifests, tmp_path))


@every_overlay
def test_probes_and_ports_are_those_of_the_http_server(overlay: Path, tmp_path: Path) -> None:
    for workload in defenders(rendered(overlay)):
        (container,) = pod_of(workload)["containers"]
        settings = settings_of(rendered(overlay), workload, tmp_path)
        assert [port["containerPort"] for port in container["ports"]] == [settings.http_port]
        probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in PROBES}
        assert {kind: probe["path"] for kind, probe in probes.items()} == PROBES
        assert {probe["port"] for probe in probes.values()} == {container["ports"][0]["name"]}
        (service,) = of_kind(rendered(overlay), "Service")
        assert [port["targetPort"] for port in service["spec"]["ports"]] == [container["ports"][0]["name"]]


async def test_the_paths_that_are_asked_for_are_served() -> None:
    (monitor,) = of_kind(rendered(OVERLAY / "production"), "ServiceMonitor")
    paths = {end["path"] for end in monitor["spec"]["endpoints"]}
    for overlay in OVERLAYS:
        for workload in defenders(rendered(overlay)):
            (container,) = pod_of(workload)["containers"]
            paths |= {container[f"{kind}Probe"]["httpGet"]["path"] for kind in PROBES}
    server = await serve("127.0.0.1", 0, Well(), Well(), lambda: None)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            for path in paths:
                async with session.get(path) as answer:
                    assert answer.status == 200, path
    finally:
        await server.close()


@every_overlay
def test_a_pod_has_the_time_to_leave_and_is_not_restarted_before_its_lease_ends(
    overlay: Path, tmp_path: Path
) -> None:
    for workload in defenders(rendered(overlay)):
        settings = settings_of(rendered(overlay), workload, tmp_path)
        leaves_s = settings.drain_s + settings.request_timeout_s
        assert pod_of(workload)["terminationGracePeriodSeconds"] > 2 * leaves_s
        (container,) = pod_of(workload)["containers"]
        live = container["livenessProbe"]
        assert live["periodSeconds"] * live["failureThreshold"] < settings.lease_ttl_s
        start = container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] > settings.lease_ttl_s


@every_overlay
def test_a_pod_may_have_the_memory_that_its_settings_take(overlay: Path, tmp_path: Path) -> None:
    for workload in defenders(rendered(overlay)):
        settings = settings_of(rendered(overlay), workload, tmp_path)
        (container,) = pod_of(workload)["containers"]
        taken_mb = settings.cache_mb + 120 + 150 * settings.workers  # deploy/README.md
        limit = container["resources"]["limits"]["memory"]
        assert limit.endswith("Mi")
        assert int(limit[:-2]) * 2**20 > taken_mb * 10**6


@every_overlay
def test_tracks_have_ids_of_their_own_and_enough_of_them(overlay: Path, tmp_path: Path) -> None:
    taken: set[int] = set()
    for workload in defenders(rendered(overlay)):
        ids = set(settings_of(rendered(overlay), workload, tmp_path).ids)
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


@every_overlay
def test_every_secret_that_is_named_has_an_example(overlay: Path) -> None:
    for workload in workloads(rendered(overlay)):
        (container,) = pod_of(workload)["containers"]
        named = {one["secret"]["secretName"] for one in pod_of(workload)["volumes"] if "secret" in one}
        named |= {one["secretRef"]["name"] for one in container["envFrom"] if "secretRef" in one}
        assert named <= secrets().keys()


def test_the_update_is_that_of_the_design() -> None:
    deployment = only(rendered(KUBERNETES / "base"), "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 10, "maxUnavailable": 0}


def test_dev_needs_nothing_but_a_nats_server(tmp_path: Path) -> None:
    manifests = rendered(OVERLAY / "dev")
    assert not [one["kind"] for one in manifests if one["kind"] in SCHEMAS]
    for workload in workloads(manifests):
        settings = settings_of(manifests, workload, tmp_path)
        assert (settings.history, settings.stream_replicas) == ("jetstream", 1)
        assert not settings.nats_nkey_seed
        assert all(one["secret"]["optional"] for one in pod_of(workload)["volumes"] if "secret" in one)


@pytest.mark.parametrize("name", ["production", "autoscale", "blue-green", "canary", "statefulset"])
def test_a_fleet_has_256_partitions_in_four_streams_of_three_replicas(name: str, tmp_path: Path) -> None:
    for workload in workloads(rendered(OVERLAY / name)):
        settings = settings_of(rendered(OVERLAY / name), workload, tmp_path / workload["metadata"]["name"])
        assert (settings.partitions, settings.names.shards, settings.stream_replicas) == (256, 4, 3)
        assert settings.history == "cassandra"
        assert all(server.startswith("tls://") for server in settings.servers)
        assert settings.nats_tls_ca
        assert settings.cassandra_tls_ca


def test_production_has_thirty_defenders() -> None:
    assert only(rendered(OVERLAY / "production"), "Deployment")["spec"]["replicas"] == 30


def test_blue_and_green_take_each_others_place_by_a_cutover(tmp_path: Path) -> None:
    manifests = rendered(OVERLAY / "blue-green")
    found = {
        name: settings_of(manifests, only(manifests, "Deployment", f"defender-{name}"), tmp_path)
        for name in ("blue", "green")
    }
    assert {name: settings.track for name, settings in found.items()} == {"blue": "blue", "green": "green"}
    assert [one.ring_join for one in found.values()] == [RingJoin.AUTO, RingJoin.MANUAL]
    assert len({len(one.ids) for one in found.values()}) == 1


def test_a_canary_is_another_release_in_a_ring_with_the_fleet(tmp_path: Path) -> None:
    manifests = rendered(OVERLAY / "canary")
    stable, canary = (only(manifests, "Deployment", name) for name in ("defender", "defender-canary"))
    settings = settings_of(manifests, canary, tmp_path)
    assert (settings.track, settings.ring_join, canary["spec"]["replicas"]) == ("canary", RingJoin.AUTO, 1)
    images = {pod_of(one)["containers"][0]["image"] for one in (stable, canary)}
    assert len(images) == 2


def test_a_stateful_set_claims_by_ordinals(tmp_path: Path) -> None:
    manifests = rendered(OVERLAY / "statefulset")
    stateful_set = only(manifests, "StatefulSet")
    settings = settings_of(manifests, stateful_set, tmp_path)
    assert settings.identity is Identity.ORDINAL
    assert settings.revision == "defender-7c9f"
    assert stateful_set["spec"]["podManagementPolicy"] == "Parallel"
    assert stateful_set["spec"]["serviceName"] == only(manifests, "Service")["metadata"]["name"]
    assert "volumeClaimTemplates" not in stateful_set["spec"]


def test_the_operators_rules_are_prometheus_own() -> None:
    rule = only(rendered(OVERLAY / "production"), "PrometheusRule")
    alerts = yaml.safe_load((KUBERNETES.parent / "prometheus" / "alerts.yaml").read_text())
    assert rule["spec"] == alerts, "run: python tests/deploy/write_prometheus_rule.py"


def test_prometheus_scrapes_the_service() -> None:
    manifests = rendered(OVERLAY / "production")
    monitor, service = only(manifests, "ServiceMonitor"), only(manifests, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [end["port"] for end in monitor["spec"]["endpoints"]] == [service["spec"]["ports"][0]["name"]]


def test_the_scaler_scales_what_is_there_within_the_ids(tmp_path: Path) -> None:
    manifests = rendered(OVERLAY / "autoscale")
    scaled, deployment = only(manifests, "ScaledObject"), only(manifests, "Deployment")
    target = scaled["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"], "an apply would set back what the scaler chose"
    ids = settings_of(manifests, deployment, tmp_path).ids
    assert scaled["spec"]["minReplicaCount"] < scaled["spec"]["maxReplicaCount"] <= len(ids)
    (trigger,) = scaled["spec"]["triggers"]
    assert 'defender_partition_lag{namespace="defender"}' in trigger["metadata"]["query"]
