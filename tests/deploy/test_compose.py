"""The laptop's fleet: its parts fit each other, and a real nats-server takes its configuration."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from fleet import until

from bench.lab.pods import Pod
from runtime import config
from runtime.bus import connect
from runtime.config import Settings
from runtime.embedded import NatsServer, server_binary
from runtime.errors import DefenderError
from runtime.resources import ensure

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("init", "defender")
PASSWORDS: dict[str, str] = SERVICES["nats"]["environment"]


def test_what_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_a_defenders_environment_is_known(name: str) -> None:
    environ = {key: value.replace("${HISTORY:-cassandra}", "cassandra") for key, value in
               SERVICES[name]["environment"].items()}  # fmt: skip
    assert {key.lower() for key in environ} <= set(Settings.__struct_fields__)
    settings = config.load(environ)
    assert settings.nats_password == PASSWORDS[f"NATS_PASSWORD_{settings.nats_user.upper()}"]
    server, _, port = settings.cassandra_contact_points.partition(":")
    assert (server in SERVICES, port) == (True, "9042")


def test_a_defender_runs_as_in_a_cluster_and_has_the_time_to_leave() -> None:
    usual = Settings()
    for name in OURS:
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["tmpfs"] == ["/tmp"]
        assert SERVICES[name]["cap_drop"] == ["ALL"]
    grace_s = float(SERVICES["defender"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > usual.successor_wait_s + usual.handoff_s + usual.drain_s


def test_no_image_is_whatever_is_newest() -> None:
    for service in SERVICES.values():
        _, _, tag = service["image"].partition(":")
        assert tag not in ("", "latest")


def test_prometheus_scrapes_the_defenders_and_knows_the_rules() -> None:
    scraped = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())
    (job,) = scraped["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert found["names"] == ["defender"]
    assert found["port"] == Settings().http_port
    mounted = {volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]}
    assert set(scraped["rule_files"]) <= mounted


def conf(folder: Path) -> Path:
    """The server's configuration, with a store of this machine's."""
    text = (DEPLOY / "compose" / "nats.conf").read_text()
    path = folder / "nats.conf"
    path.write_text(text.replace("/data", str(folder / "data")))
    (folder / "permissions.conf").write_text((DEPLOY / "nats" / "permissions.conf").read_text())
    return path


def test_a_real_server_takes_the_configuration(tmp_path: Path) -> None:
    environ = {**os.environ, **PASSWORDS}
    done = subprocess.run(
        [server_binary(), "-t", "-c", conf(tmp_path)], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_with_its_users_init_makes_what_a_defender_then_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PASSWORDS.items():
        monkeypatch.setenv(name, value)
    permissions = (DEPLOY / "nats" / "permissions.conf").read_text()
    with NatsServer(tmp_path / "nats", extra=f"authorization {{ {permissions} }}") as server:
        usual = Settings(nats_servers=server.url, workers=1, cache_mb=20)
        operator = msgspec.structs.replace(usual, nats_user="operator", nats_password="operator")
        connection = await connect(operator, "init")
        try:
            await ensure(connection, operator)
        finally:
            await connection.close()
        with pytest.raises(DefenderError):
            await connect(msgspec.structs.replace(usual, nats_user="defender", nats_password="guessed"), "x")
        with Pod(msgspec.structs.replace(usual, nats_user="defender", nats_password="defender")) as pod:
            await pod.wait_serving()
            await until(lambda: not pod.not_ready(), what="it is ready")
