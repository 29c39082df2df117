"""What NATS and Cassandra are set up with fits what the defenders are told of them."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import nkeys
import yaml
from fleet import connected
from operators import SCHEMAS
from rendered import KUBERNETES, Manifest, defenders, rendered, secrets, settings_of

from runtime import permissions
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.permissions import Role
from runtime.resources import ensure
from tests.tls_files import Key

VALUES = KUBERNETES / "values"
PRODUCTION = KUBERNETES / "overlays" / "production"
PARTITIONS = 256


def documents(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((VALUES / name).read_text()))


def nats_values() -> dict[str, Any]:
    (values,) = documents("nats.yaml")
    found: dict[str, Any] = values
    return found


def as_the_chart_writes_it(merged: dict[str, Any]) -> str:
    """The configuration of `config.merge`: JSON in order, with include directives."""
    text = json.dumps(merged, indent=2, sort_keys=True)
    return re.sub(r'".*\$include": "(.*)",?', r"include \1;", text).removeprefix("{").removesuffix("}")


def test_the_operators_objects_have_the_fields_of_their_definitions() -> None:
    for manifest in (*documents("cassandra.yaml"), *documents("certificates.yaml")):
        jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])


async def test_nats_takes_the_values_and_the_fleet_finds_its_partitions(tmp_path: Path) -> None:
    """The account of the values, with `defender permissions` for NKeys: init, then a pod."""
    keys = {role: Key(nkeys.PREFIX_BYTE_USER) for role in Role}
    sharded = Settings(partitions=PARTITIONS)
    users = permissions.configuration(sharded, {role: [key.public] for role, key in keys.items()})
    folder = tmp_path / "nats-permissions"
    folder.mkdir()
    (folder / "permissions.conf").write_text(users)
    extra = as_the_chart_writes_it(nats_values()["config"]["merge"])
    with NatsServer(tmp_path / "nats-config", extra=extra) as server:
        for role in (Role.OPERATOR, Role.DEFENDER):  # the second finds all there, and tries the mapping out
            seed = tmp_path / f"{role}.nk"
            seed.write_bytes(keys[role].seed)
            settings = Settings(
                nats_servers=server.url, nats_nkey_seed=str(seed), partitions=PARTITIONS, pod_uid=role
            )
            async with connected(settings) as connection:
                await ensure(connection, settings)


def test_the_permissions_are_where_the_configuration_includes_them_from() -> None:
    values = nats_values()
    included = values["config"]["merge"]["accounts"]["FAB"]["$include"]
    (mount,) = (patch["value"] for patch in values["container"]["patch"])
    (volume,) = (patch["value"] for patch in values["podTemplate"]["patch"])
    assert f"/etc/nats-config/{included}".replace("nats-config/../", "") == (
        f"{mount['mountPath']}/permissions.conf"
    )
    assert mount["name"] == volume["name"]


def test_names_are_in_the_certificates_and_secrets_are_those_that_are_mounted(tmp_path: Path) -> None:
    manifests = rendered(PRODUCTION)
    (workload,) = defenders(manifests)
    settings = settings_of(manifests, workload, tmp_path)
    made = {one["spec"]["secretName"]: one["spec"] for one in documents("certificates.yaml")}
    hosts = [str(urlsplit(server).hostname) for server in settings.servers]
    assert len(hosts) == nats_values()["config"]["cluster"]["replicas"]
    for host in hosts:
        assert any(fnmatch.fnmatch(host, name) for name in made["nats-tls"]["dnsNames"]), host
    assert settings.cassandra_tls_hostname in made["cassandra-tls"]["dnsNames"]
    assert made.keys() - {"nats-tls", "cassandra-tls"} <= secrets().keys()
    values = nats_values()
    ways = (values["config"]["nats"]["tls"], values["config"]["cluster"]["tls"], values["tlsCA"])
    assert {way["secretName"] for way in ways} == {"nats-tls"}


def test_cassandra_is_the_cluster_that_the_settings_name(tmp_path: Path) -> None:
    manifests = rendered(PRODUCTION)
    (workload,) = defenders(manifests)
    settings = settings_of(manifests, workload, tmp_path)
    (cluster,) = documents("cassandra.yaml")
    (datacenter,) = cluster["spec"]["cassandra"]["datacenters"]
    name = datacenter["metadata"]["name"]
    assert settings.cassandra_datacenter == name
    assert settings.replication == {name: datacenter["size"]}
    service = f"{cluster['metadata']['name']}-{name}-service.{cluster['metadata']['namespace']}.svc"
    assert settings.contact_points == [(service, 9042)]


def test_the_network_lets_the_pods_reach_both() -> None:
    """Namespaces and ports of the settings are those of the NetworkPolicy."""
    (policy,) = (one for one in rendered(PRODUCTION) if one["kind"] == "NetworkPolicy")
    allowed = {
        (to["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], port["port"])
        for rule in policy["spec"]["egress"]
        for to in rule.get("to", ())
        for port in rule["ports"]
        if "namespaceSelector" in to
    }
    assert {("nats", 4222), ("cassandra", 9042), ("kube-system", 53)} == allowed
