"""Cassandra's TLS files rotated on disk: an open cluster meets them at its next connection."""

from __future__ import annotations

from pathlib import Path

import pytest
from cassandra.cluster import NoHostAvailable, Session
from cassandra_server import CassandraServer
from fleet import until
from on_cassandra import on_cassandra, running

from runtime.config import Settings
from runtime.history import cluster
from tests.tls_files import Authority, needs_openssl

QUERY = "SELECT release_version FROM system.local"


class Node:
    """A server that asks for certificates of one CA, and the files of its client."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.keystore = folder / "keystore.pem"
        self.rotate()

    def rotate(self) -> None:
        """Another CA, and new certificates of it on both sides."""
        self.authority.renew()
        cert, key = self.authority.issue("node")
        self.keystore.write_text(key.read_text() + cert.read_text())
        self.authority.issue("client")

    def options(self) -> dict[str, object]:
        return {
            "client_encryption_options": {
                "enabled": True,
                "optional": False,
                "require_client_auth": True,
                "ssl_context_factory": {
                    "class_name": "org.apache.cassandra.security.PEMBasedSslContextFactory"
                },
                "keystore": str(self.keystore),
                "truststore": str(self.authority.ca),
            }
        }

    def settings(self, server: CassandraServer) -> Settings:
        files = {
            "cassandra_tls_ca": str(self.authority.ca),
            "cassandra_tls_cert": str(self.authority.folder / "client.pem"),
            "cassandra_tls_key": str(self.authority.folder / "client.key"),
        }
        return on_cassandra(Settings(), server, **files)


def answers(session: Session) -> bool:
    """Whether a request reaches the node."""
    try:
        return bool(session.execute(QUERY).one())
    except (NoHostAvailable, OSError):
        return False


@needs_openssl
@pytest.mark.limit_s(120)
async def test_an_open_cluster_connects_again_with_rotated_files_and_waits_for_good_ones(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    with running(options=node.options()) as server:
        opened, session = cluster.open_cluster(node.settings(server), keyspace=False)
        try:
            assert answers(session)
            server.stop()
            node.rotate()
            good = (tmp_path / "client.pem").read_text()
            (tmp_path / "client.pem").write_text(good[:60])
            server.start()
            assert not answers(session)
            (tmp_path / "client.pem").write_text(good)
            await until(lambda: answers(session), what="the session is back", deadline_s=20)
        finally:
            opened.shutdown()
