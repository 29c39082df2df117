"""The way to Cassandra on real servers: TLS, logins, addresses, nodes that go and come, the tables."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cassandra import (
    AuthenticationFailed,
    ConsistencyLevel,
    OperationTimedOut,
    WriteFailure,
    WriteTimeout,
    WriteType,
)
from cassandra.cluster import NoHostAvailable, Session
from cassandra.connection import ConnectionShutdown
from cassandra.pool import NoConnectionsAvailable
from cassandra.protocol import OverloadedErrorMessage, ServerError
from cassandra.query import SimpleStatement
from cassandra_server import CassandraServer
from on_cassandra import on_cassandra, running, with_cassandra

from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.errors import (
    CredentialsRefused,
    DefenderError,
    HistoryDiffers,
    HistoryUnreachable,
    SettingsError,
)
from runtime.history import cluster, schema

Server = CassandraServer | str
NAME = "cas.test"
PASSWORD = "cassandra"
OPENSSL_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


@contextmanager
def opened(settings: Settings, **options: Any) -> Iterator[Session]:
    made, session = cluster.open_cluster(settings, **options)
    try:
        yield session
    finally:
        made.shutdown()


def refusal(settings: Settings, query: str = "SELECT key FROM meta") -> DefenderError:
    """What opening, or the first request, is refused with."""
    with pytest.raises(DefenderError) as refused, opened(settings) as session:  # noqa: PT012
        try:
            session.execute(query)
        except Exception as error:
            raise cluster.explained(error, settings) from error
    assert "\n" not in str(refused.value)
    return refused.value


@pytest.fixture(scope="module")
def made(cassandra_server: Server) -> Settings:
    """Settings of a schema that is there; a test that changes it changes it back."""
    return with_cassandra(Settings(), cassandra_server)


# --- addresses and names --------------------------------------------------------------------------


def test_where_nothing_listens_the_error_names_the_address_and_may_pass() -> None:
    error = refusal(Settings(cassandra_contact_points="127.0.0.1:1,127.0.0.1:2"))
    assert isinstance(error, HistoryUnreachable)
    assert error.temporary
    assert "127.0.0.1:1,127.0.0.1:2: no node answers" in str(error)
    assert "Connection refused" in str(error)
    assert "CASSANDRA_CONTACT_POINTS" in str(error)


def test_a_host_that_no_name_server_knows_is_unreachable() -> None:
    error = refusal(Settings(cassandra_contact_points="cassandra.invalid"))
    assert isinstance(error, HistoryUnreachable)
    assert "no such host: correct CASSANDRA_CONTACT_POINTS" in str(error)


def test_a_server_of_another_kind_is_unreachable_within_the_timeout(nats_server: NatsServer) -> None:
    begun_s = time.monotonic()
    error = refusal(Settings(cassandra_contact_points=f"127.0.0.1:{nats_server.port}", cassandra_timeout_s=1))
    assert isinstance(error, HistoryUnreachable)
    assert time.monotonic() - begun_s < 5


def test_a_node_that_is_away_hides_none_that_is_there(cassandra_server: Server) -> None:
    settings = on_cassandra(Settings(), cassandra_server)
    points = f"127.0.0.1:1,cassandra.invalid,{settings.cassandra_contact_points}"
    with opened(
        msgspec.structs.replace(settings, cassandra_contact_points=points), keyspace=False
    ) as session:
        assert cluster.datacenters(session.cluster) == {"datacenter1": 1}


def test_a_node_is_reached_by_name_and_over_ipv6(cassandra_server: Server) -> None:
    settings = on_cassandra(Settings(), cassandra_server)
    host, port = settings.contact_points[0]
    by_name = [f"localhost:{port}"] if host == "127.0.0.1" else []
    with forwarder(host, port) as ours:
        for point in (f"[::1]:{ours}", *by_name):
            changed = msgspec.structs.replace(settings, cassandra_contact_points=point)
            with opened(changed, keyspace=False) as session:
                assert session.execute("SELECT key FROM system.local").one() == ("local",)


@contextmanager
def forwarder(host: str, port: int) -> Iterator[int]:
    """A port on ::1 behind which (host, port) is."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        ends: list[socket.socket] = []

        def copy(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while block := source.recv(65_536):
                    sink.sendall(block)
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    near, far = listener.accept()[0], socket.create_connection((host, port))
                    ends.extend((near, far))
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=copy, args=pair, daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for end in ends:
                end.close()


def test_a_datacenter_that_is_not_there_is_told_with_those_that_are(cassandra_server: Server) -> None:
    settings = on_cassandra(Settings(), cassandra_server, cassandra_datacenter="east")
    error = refusal(settings)
    assert isinstance(error, HistoryDiffers)
    assert "no datacenter 'east'; set it to one that it has: datacenter1" in str(error)


# --- the schema -----------------------------------------------------------------------------------


def test_the_schema_is_made_once_and_found_whole_ever_after(cassandra_server: Server) -> None:
    settings = on_cassandra(Settings(), cassandra_server)
    with opened(settings, keyspace=False) as session:
        with pytest.raises(HistoryDiffers, match=r"no keyspace .* run: defender init"):
            schema.check(session, settings)
        made = schema.create(session, settings)
        assert len(made) == 1 + len(schema.COLUMNS), made
        assert schema.create(session, settings) == []
        schema.check(session, settings)


def test_without_keyspace_or_tables_the_remedy_is_init(cassandra_server: Server) -> None:
    settings = on_cassandra(Settings(), cassandra_server)
    error = refusal(settings)
    assert isinstance(error, HistoryDiffers)
    assert f"no keyspace '{settings.cassandra_keyspace}': run: defender init" in str(error)
    with opened(settings, keyspace=False) as session:
        session.execute(schema.statements(settings)[""])
        with pytest.raises(HistoryDiffers, match=r"lacks .*chambers.* run: defender init"):
            schema.check(session, settings)
    error = refusal(settings)
    assert isinstance(error, HistoryDiffers)
    assert "run: defender init" in str(error)


def test_what_another_began_is_finished(cassandra_server: Server) -> None:
    settings = on_cassandra(Settings(), cassandra_server)
    with opened(settings, keyspace=False) as session:
        for table in ("", "meta"):
            session.execute(schema.statements(settings)[table])
        assert len(schema.create(session, settings)) == len(schema.COLUMNS) - 1
        schema.check(session, settings)


def test_two_that_make_it_at_once_make_one(cassandra_server: Server) -> None:
    settings = on_cassandra(Settings(), cassandra_server)

    def make(_: int) -> list[str]:
        with opened(settings, keyspace=False) as session:
            return schema.create(session, settings)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, range(2)))
    with opened(settings, keyspace=False) as session:
        schema.check(session, settings)


def test_reports_expire_and_are_compacted_by_time(made: Settings) -> None:
    changed = msgspec.structs.replace(made, history_ttl_s=3 * 86_400)
    with opened(made) as session:
        assert schema.read(session, made).ttl_s == 90 * 86_400
        assert len(schema.create(session, changed)) == 2
        found = schema.read(session, changed)
        schema.create(session, made)
        assert schema.read(session, made).compaction["compaction_window_size"] == "72"
    assert found.ttl_s == 3 * 86_400
    assert found.compaction["class"].endswith("TimeWindowCompactionStrategy")
    assert found.compaction["compaction_window_size"] == "2"
    assert found.compaction["compaction_window_unit"] == "HOURS"


@pytest.mark.parametrize(
    ("statement", "back", "said"),
    [
        (
            "UPDATE meta SET value = '2' WHERE key = 'schema'",
            "UPDATE meta SET value = '1' WHERE key = 'schema'",
            "version 2, this defender has 1: run a newer defender",
        ),
        (
            "UPDATE meta SET value = '0' WHERE key = 'schema'",
            "UPDATE meta SET value = '1' WHERE key = 'schema'",
            "version 0, this defender has 1",
        ),
        (
            "UPDATE meta SET value = '32' WHERE key = 'partitions'",
            "UPDATE meta SET value = '64' WHERE key = 'partitions'",
            "PARTITIONS is 64, and .* was made for 32: set it to that, or set CASSANDRA_KEYSPACE",
        ),
        (
            "ALTER TABLE reports DROP carried",
            "ALTER TABLE reports ADD carried blob",
            "reports is not a defender's .columns carried.: set CASSANDRA_KEYSPACE to another name",
        ),
    ],
)
def test_a_schema_that_does_not_suit_us_is_refused(
    made: Settings, statement: str, back: str, said: str
) -> None:
    with opened(made) as session:
        session.execute(statement, timeout=schema.DDL_S_MAX)
        try:
            for refuses in (schema.check, schema.create):
                with pytest.raises(HistoryDiffers, match=said):
                    refuses(session, made)
        finally:
            session.execute(back, timeout=schema.DDL_S_MAX)
        schema.check(session, made)


def test_a_schema_without_a_version_was_not_finished(made: Settings) -> None:
    with opened(made) as session:
        session.execute("DELETE FROM meta WHERE key = 'schema' IF EXISTS")  # as it was written: with Paxos
        with pytest.raises(HistoryDiffers, match=r"lacks .* version and PARTITIONS: run: defender init"):
            schema.check(session, made)
        assert schema.create(session, made) == []
        schema.check(session, made)


def test_a_column_of_a_later_version_disturbs_nobody(made: Settings) -> None:
    with opened(made) as session:
        session.execute("ALTER TABLE reports ADD later text", timeout=schema.DDL_S_MAX)
        schema.check(session, made)


def test_replicas_in_a_datacenter_that_is_not_there_are_refused(cassandra_server: Server) -> None:
    settings = on_cassandra(Settings(), cassandra_server, cassandra_replication="datacenter1:1,west:3")
    said = "names west, and the cluster's datacenters are datacenter1"
    with opened(settings, keyspace=False) as session, pytest.raises(HistoryDiffers, match=said):
        schema.create(session, settings)


def test_more_replicas_than_nodes_are_refused(cassandra_server: Server) -> None:
    settings = on_cassandra(Settings(), cassandra_server, cassandra_replication="datacenter1:16")
    said = "asks for 16 replicas in datacenter1, and it has [0-9]+ nodes"
    with opened(settings, keyspace=False) as session, pytest.raises(HistoryDiffers, match=said):
        schema.create(session, settings)


def test_too_few_replicas_are_told_as_such(cassandra_server: Server) -> None:
    settings = with_cassandra(Settings(), cassandra_server)
    more = "{'class': 'NetworkTopologyStrategy', 'datacenter1': 3}"
    with opened(settings) as session:
        session.execute(f"ALTER KEYSPACE {settings.cassandra_keyspace} WITH replication = {more}", timeout=30)
    error = refusal(settings)
    assert isinstance(error, HistoryUnreachable)
    assert "too few replicas answered for CASSANDRA_CONSISTENCY LOCAL_QUORUM" in str(error)


def test_a_request_that_the_server_refuses_may_not_be_repeated(made: Settings) -> None:
    for wrong in ("SELECT nothing FROM meta", "SELEC key", "SELECT key FROM other"):
        error = refusal(made, wrong)
        assert isinstance(error, HistoryDiffers), wrong
        assert not error.temporary


def test_an_error_that_is_no_error_of_cassandra_passes_through() -> None:
    with pytest.raises(TypeError):
        cluster.explained(TypeError("a slip"), Settings())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OverloadedErrorMessage(0x1001, "too much", {}), "it failed a request: .*too much"),
        (ServerError(0x0000, "out of luck", {}), "it failed a request: .*out of luck"),
        (
            WriteFailure("1 failed", write_type=WriteType.SIMPLE),
            "replicas failed: 1 failed.*; .* whether their disks are full",
        ),
        (
            WriteTimeout("1 of 2", write_type=WriteType.SIMPLE),
            "too few replicas answered for CASSANDRA_CONSISTENCY LOCAL_QUORUM: 1 of 2",
        ),
        (OperationTimedOut(), "no answer within CASSANDRA_TIMEOUT_S 5"),
        (ConnectionShutdown("was closed"), "no node answers .was closed."),
        (NoConnectionsAvailable(), "no node answers .NoConnectionsAvailable."),
        (
            NoHostAvailable("none", {"a": OSError("x"), "b": AuthenticationFailed("y")}),
            "no node answers .x; y.",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_pass_by_itself_is_temporary(error: Exception, said: str) -> None:
    found = cluster.explained(error, Settings())
    assert isinstance(found, HistoryUnreachable)
    assert re.search(said, str(found)), found


def test_requests_ask_for_the_replicas_of_the_settings(made: Settings) -> None:
    with opened(made) as session:
        response = session.execute_async(SimpleStatement("SELECT key, value FROM meta"))
        assert sorted(response.result()) == [("partitions", "64"), ("schema", "1")]
        assert response.message.consistency_level == ConsistencyLevel.LOCAL_QUORUM


# --- a node that goes and comes -------------------------------------------------------------------


def test_a_node_that_hangs_or_dies_is_told_and_found_again(own_cassandra: CassandraServer) -> None:
    settings = with_cassandra(Settings(), own_cassandra)
    settings = msgspec.structs.replace(settings, cassandra_timeout_s=1.0)

    def asked(session: Session) -> DefenderError | None:
        try:
            session.execute("SELECT key FROM meta")
        except Exception as error:
            return cluster.explained(error, settings)
        return None

    def comes_back(session: Session) -> None:
        deadline_s = time.monotonic() + 20
        while (error := asked(session)) is not None:
            assert isinstance(error, HistoryUnreachable), error
            assert time.monotonic() < deadline_s, error

    with opened(settings) as session:
        assert asked(session) is None
        own_cassandra.freeze()
        error = asked(session)
        assert isinstance(error, HistoryUnreachable)
        assert "no answer within CASSANDRA_TIMEOUT_S 1" in str(error)
        assert isinstance(refusal(settings), HistoryUnreachable)
        own_cassandra.thaw()
        comes_back(session)
        own_cassandra.kill()
        error = asked(session)
        assert isinstance(error, HistoryUnreachable)
        own_cassandra.start()
        comes_back(session)


# --- TLS and logins -------------------------------------------------------------------------------


class Certificates:
    """A CA, a node's certificate for NAME, a client's; a second CA that signed nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for ca in ("ca", "other"):
            self._openssl("req", "-x509", *OPENSSL_KEY, "-subj", f"/CN={ca}", "-days", "2", ca)
        for name in ("node", "client"):
            self._openssl("req", *OPENSSL_KEY, "-subj", f"/CN={name}", name, out="csr")
            (folder / "names").write_text(f"subjectAltName=DNS:{NAME}")
            signed = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2"]
            self._run(*signed, "-extfile", "names", "-out", f"{name}.pem")
        pair = (folder / "node.key").read_text() + (folder / "node.pem").read_text()
        (folder / "keystore").write_text(pair)

    def _openssl(self, *words: str, out: str = "pem") -> None:
        self._run(*words[:-1], "-keyout", f"{words[-1]}.key", "-out", f"{words[-1]}.{out}")

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def path(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def strict_cassandra(certificates: Certificates) -> Iterator[CassandraServer]:
    """A server that wants TLS, a client's certificate and a login."""
    encryption = {
        "enabled": True,
        "optional": False,
        "require_client_auth": True,
        "ssl_context_factory": {"class_name": "org.apache.cassandra.security.PEMBasedSslContextFactory"},
        "keystore": certificates.path("keystore"),
        "truststore": certificates.path("ca.pem"),
    }
    options = {
        "authenticator": "PasswordAuthenticator",
        "authorizer": "CassandraAuthorizer",
        "client_encryption_options": encryption,
    }
    with running(options=options) as server:
        yield server


@pytest.fixture(scope="module")
def strict(strict_cassandra: CassandraServer, certificates: Certificates) -> Settings:
    """Settings that the strict server accepts, of a schema that is there."""
    settings = on_cassandra(
        Settings(),
        strict_cassandra,
        cassandra_user="cassandra",
        cassandra_password=PASSWORD,
        cassandra_tls_ca=certificates.path("ca.pem"),
        cassandra_tls_cert=certificates.path("client.pem"),
        cassandra_tls_key=certificates.path("client.key"),
        cassandra_tls_hostname=NAME,
        cassandra_timeout_s=3.0,
    )
    deadline_s = time.monotonic() + 30
    while True:
        try:
            with opened(settings, keyspace=False) as session:
                schema.create(session, settings)
            return settings
        except CredentialsRefused:  # the server makes its first user after it began to serve
            assert time.monotonic() < deadline_s


def test_the_right_certificates_and_password_are_let_in(strict: Settings) -> None:
    with opened(strict) as session:
        schema.check(session, strict)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        (
            {"cassandra_password": "hunter2"},
            CredentialsRefused,
            "correct CASSANDRA_USER or CASSANDRA_PASSWORD",
        ),
        ({"cassandra_user": "nobody"}, CredentialsRefused, "refused the user 'nobody'"),
        (
            {"cassandra_user": "", "cassandra_password": ""},
            CredentialsRefused,
            "asks for a login: set CASSANDRA_USER and CASSANDRA_PASSWORD",
        ),
        (
            {"cassandra_tls_ca": "other.pem"},
            HistoryDiffers,
            "CERTIFICATE_VERIFY_FAILED.*correct CASSANDRA_TLS_CA",
        ),
        ({"cassandra_tls_hostname": ""}, HistoryDiffers, "not valid for '127.0.0.1'.*CASSANDRA_TLS_HOSTNAME"),
        ({"cassandra_tls_hostname": "cas"}, HistoryDiffers, "not valid for 'cas'.*CASSANDRA_TLS_HOSTNAME"),
        ({"cassandra_tls_cert": "", "cassandra_tls_key": ""}, HistoryDiffers, "CASSANDRA_TLS_CERT"),
        (
            {"cassandra_tls_ca": "", "cassandra_tls_cert": "", "cassandra_tls_hostname": ""},
            HistoryUnreachable,
            "set CASSANDRA_TLS_CA if it asks for TLS",
        ),
        ({"cassandra_tls_ca": "names"}, SettingsError, "CASSANDRA_TLS_CA: .* is no PEM certificate"),
        ({"cassandra_tls_key": "ca.key"}, SettingsError, "CASSANDRA_TLS_CERT: .* is no PEM pair"),
    ],
)
def test_what_is_wrong_with_tls_or_the_login_is_told_with_its_setting(
    strict: Settings,
    certificates: Certificates,
    changes: dict[str, str],
    kind: type[DefenderError],
    said: str,
) -> None:
    found = {
        name: certificates.path(value)
        if value and name in ("cassandra_tls_ca", "cassandra_tls_key")
        else value
        for name, value in changes.items()
    }
    with pytest.raises(DefenderError, match=said) as refused:
        cluster.open_cluster(msgspec.structs.replace(strict, **found))
    assert type(refused.value) is kind
    assert "hunter2" not in str(refused.value)


def test_a_user_without_rights_is_told_which_to_grant(strict: Settings) -> None:
    with opened(strict) as session:
        session.execute("CREATE ROLE IF NOT EXISTS reader WITH PASSWORD = 'secret' AND LOGIN = true")
    error = refusal(
        msgspec.structs.replace(strict, cassandra_user="reader", cassandra_password="secret"),
        f"SELECT key FROM {strict.cassandra_keyspace}.meta",
    )
    assert isinstance(error, CredentialsRefused)
    assert f"GRANT SELECT, MODIFY ON KEYSPACE {strict.cassandra_keyspace}" in str(error)
