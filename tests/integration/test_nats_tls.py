"""Certificates, keys and credentials rotated on disk: whoever is connected meets them without a restart."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import nkeys
import pytest
from fleet import connected, until

from bench.lab.pods import Pod, brisk
from runtime import credentials
from runtime.bus import connect
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.errors import SettingsError
from tests.load import fleet
from tests.tls_files import Account, Authority, Key, needs_openssl

SEED = random.SystemRandom().randrange(10**6)
PATIENT = {"lease_ttl_s": 30.0, "lease_held_s": 20.0, "heartbeat_ttl_s": 30.0}


class Site:
    """A nats-server that asks for certificates of one CA and for JWTs of one account; the files of two users:
    the pod's, which are spoiled at times, and an auditor's."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.account = Authority(folder / "tls"), Account()
        self.folder = folder
        self.users = ("pod", "auditor")
        self.rotate()
        cert, key = self.authority.folder / "server.pem", self.authority.folder / "server.key"
        files = f'cert_file: "{cert}", key_file: "{key}", ca_file: "{self.authority.ca}"'
        self.server = NatsServer(extra=f"tls {{ {files}, verify: true }}\n{self.account.configuration()}")

    def rotate(self) -> None:
        """Another CA; new certificates of the server and of all users; new keys and JWTs of users."""
        self.authority.renew()
        self.authority.issue("server")
        for user in self.users:
            self.authority.issue(user)
            self.account.write_credentials(self.credentials(user), user)

    def credentials(self, user: str) -> Path:
        return self.folder / f"{user}.creds"

    def settings(self, user: str, **changes: object) -> Settings:
        tls = self.authority.folder
        return msgspec.structs.replace(
            Settings(
                nats_servers=self.server.url.replace("nats:", "tls:"),
                nats_creds=str(self.credentials(user)),
                nats_tls_ca=str(self.authority.ca),
                nats_tls_cert=str(tls / f"{user}.pem"),
                nats_tls_key=str(tls / f"{user}.key"),
            ),
            **changes,
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with made.server:
        yield made


def reload(server: NatsServer, before: str = "", after: str = "") -> None:
    """As `nats-server --signal reload` does it, after a change of its configuration's text."""
    path = server.folder / "nats-server.conf"
    path.write_text(path.read_text().replace(before, after))
    os.kill(server.pid, signal.SIGHUP)


def logged(server: NatsServer, text: str) -> bool:
    return text in server.log_path.read_text(errors="replace")


@needs_openssl
@pytest.mark.limit_s(120)
async def test_a_pod_goes_on_over_rotated_certificates_and_credentials_and_loses_nothing(site: Site) -> None:
    """Its CA, its certificate, its key and its JWT, and the server's certificate; then files that hold
    nothing, which it waits for. The same processes and the same ID throughout, under load."""
    outsider = site.settings("auditor", **brisk(**PATIENT))
    async with fleet(outsider) as outside:
        with Pod(site.settings("pod", **brisk(**PATIENT))) as pod:
            await pod.wait_serving()
            pids = (pod.pid, dict(pod.workers))
            publisher = outside.publisher(seed=SEED)
            publisher.begin()
            await publisher.more(300)
            site.rotate()
            reload(site.server)
            await until(lambda: logged(site.server, "Reloaded server configuration"), what="it has reloaded")
            await publisher.more(300)  # nobody was cut off
            assert not pod.lines("connected again")
            site.server.restart()
            await until(lambda: len(pod.lines("connected again")) == 1, what="the pod is back")
            await publisher.more(300)
            spoil(site)
            site.server.restart()
            await until(lambda: is_told(pod), what="the supervisor tells of the file")
            await until(lambda: pod.lines("waiting for NATS"), what="the workers tell of the file")
            assert pod.exit_code is None
            assert not pod.lines("left")
            site.authority.issue("pod")
            site.account.write_credentials(site.credentials("pod"), "pod")
            await until(lambda: len(pod.lines("connected again")) == 2, what="the pod is back once more")
            await publisher.more(300)
            await publisher.finish()
            await outside.audit()
            assert (pod.pid, dict(pod.workers)) == pids
            assert [line["stable_id"] for line in pod.lines("claimed")] == ["defender-0"]


def spoil(site: Site) -> None:
    """Half-written files, of the pod alone."""
    (site.authority.folder / "pod.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB")
    site.credentials("pod").write_text("-----BEGIN NATS USER JWT-----\n")


def is_told(pod: Pod) -> bool:
    """Whether the supervisor, whose session reconnects, has a line with the setting and the file."""
    lines = pod.lines("connection trouble")
    return any("NATS_CREDS" in line["cause"] and "pod.creds" in line["cause"] for line in lines)


@needs_openssl
async def test_a_session_goes_on_when_its_jwt_expires_and_the_file_has_a_new_one(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The server ends such a session itself; no other connection is cut. nats-py would give up."""
    path = site.credentials("pod")
    site.account.write_credentials(path, "pod", expires_s=3)
    with caplog.at_level(logging.WARNING, logger="defender"):
        async with connected(site.settings("pod")) as connection:
            site.account.write_credentials(path, "pod")
            assert connection.stats["reconnects"] == 0
            await until(lambda: connection.stats["reconnects"] == 1 and connection.is_connected)
            assert "streams" in await connection.api("INFO")
        causes = [str(vars(record)).lower() for record in caplog.records]
        assert any("user authentication expired" in cause for cause in causes)


async def test_an_nkey_is_read_anew_when_the_server_knows_another(tmp_path: Path) -> None:
    """With its public half, which nats-py reads once."""
    keys = [Key(nkeys.PREFIX_BYTE_USER) for _ in range(2)]
    extras = [f"authorization {{ users = [ {{ nkey: {key.public} }} ] }}" for key in keys]
    seed = tmp_path / "seed.nk"
    seed.write_bytes(keys[0].seed)
    with NatsServer(extra=extras[0]) as server:
        async with connected(Settings(nats_servers=server.url, nats_nkey_seed=str(seed))) as connection:
            seed.write_bytes(keys[1].seed)
            reload(server, extras[0], extras[1])
            await until(lambda: connection.stats["reconnects"] == 1 and connection.is_connected)
            assert "streams" in await connection.api("INFO")


@needs_openssl
async def test_a_session_that_the_new_certificate_does_not_fit_tells_it_once_and_goes_on_trying(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The CA's file is rotated before the server's certificate is: it heals when that comes."""
    trouble = "connection trouble"
    with caplog.at_level(logging.WARNING, logger="defender"):
        async with connected(site.settings("pod")) as connection:
            site.authority.renew()
            site.server.restart()
            await until(lambda: tries(site.server) >= 4, what="it tries again and again", deadline_s=20)
            told = [str(vars(record)) for record in caplog.records if record.getMessage() == trouble]
            assert sum("certificate verify failed" in line.lower() for line in told) == 1
            site.rotate()
            reload(site.server)
            await until(lambda: connection.is_connected, what="it is connected", deadline_s=15)


def tries(server: NatsServer) -> int:
    """Handshakes that failed, by the server's log."""
    return server.log_path.read_text(errors="replace").count("TLS handshake error")


@needs_openssl
async def test_a_bad_file_at_the_start_is_a_mistake_and_later_a_rotation_half_way(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that is to last (a supervisor's) raises it; one that follows others (a worker's) waits."""
    spoil(site)
    with pytest.raises(SettingsError, match="NATS_CREDS"):
        await connect(site.settings("pod"), "test", wait=True)
    with caplog.at_level(logging.WARNING, logger="defender"):
        dialling = asyncio.create_task(connect(site.settings("pod"), "test", wait=True, reconnect=False))
        await until(lambda: [r for r in caplog.records if r.getMessage() == "waiting for NATS"])
        site.authority.issue("pod")
        site.account.write_credentials(site.credentials("pod"), "pod")
        connection = await asyncio.wait_for(dialling, 10)
    await connection.close()


def test_a_key_is_not_shown(tmp_path: Path) -> None:
    key = Key(nkeys.PREFIX_BYTE_USER)
    path = tmp_path / "seed.nk"
    path.write_bytes(key.seed)
    read = credentials.user_key(Settings(nats_nkey_seed=str(path)))
    assert read is not None
    assert key.seed.decode() not in repr(read)


def test_replies_come_under_a_name_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "user.creds"
    Account().write_credentials(path, "etch host.7")
    key = Key(nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed.nk").write_bytes(key.seed)
    logins = {
        "_INBOX": Settings(),
        "_INBOX_fab": Settings(nats_user="fab", nats_password="x"),
        "_INBOX_url": Settings(nats_servers="nats://url:x@127.0.0.1:4222"),
        "_INBOX_etch_host_7": Settings(nats_creds=str(path)),
        f"_INBOX_{key.public}": Settings(nats_nkey_seed=str(tmp_path / "seed.nk")),
    }
    for inbox, settings in logins.items():
        assert credentials.inbox_of(credentials.user_name(settings)) == inbox
