"""The connection against a real nats-server: what is delivered, what is refused, what is never sent."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from fleet import connected, settings_for, until

import runtime
from runtime import bus
from runtime import connection as connection_module
from runtime.bus import (
    ApiError,
    Connection,
    Disconnected,
    NoAnswer,
    NotFound,
    PayloadTooLarge,
    Repeated,
    WrongLastSequence,
    connect,
    frame_pub,
    frame_stored,
    header,
    within,
)
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.errors import CredentialsRefused, JetStreamOff, ServerUnreachable, SettingsError


async def make_stream(connection: Connection, name: str, **more: object) -> None:
    config = {"name": name, "subjects": [f"{name}.>"], "storage": "file", **more}
    await connection.api(f"STREAM.CREATE.{name}", config)


async def messages_of(connection: Connection, name: str) -> int:
    answer = await connection.api(f"STREAM.INFO.{name}")
    return int(answer["state"]["messages"])


async def test_a_tap_gets_subject_reply_payload_and_headers(settings: Settings) -> None:
    async with connected(settings) as connection:
        got: list[tuple[bytes, bytes, bytes, bytes | None]] = []
        await connection.tap("a.*", lambda *message: got.append(message))
        connection.write(frame_pub(b"a.1", b"plain", b"back") + frame_stored(b"a.2", b"id-1", b"headed"))
        await until(lambda: len(got) == 2)
        assert got[0] == (b"a.1", b"back", b"plain", None)
        assert got[1][:3] == (b"a.2", b"", b"headed")
        assert header(got[1][3], b"Nats-Msg-Id") == b"id-1"


async def test_nothing_is_delivered_after_untap(settings: Settings) -> None:
    async with connected(settings) as connection:
        first: list[bytes] = []
        second: list[bytes] = []
        sid = await connection.tap("b", lambda _s, _r, payload, _h: first.append(payload))
        await connection.tap("b", lambda _s, _r, payload, _h: second.append(payload))
        connection.write(frame_pub(b"b", b"1"))
        await until(lambda: second == [b"1"])
        await connection.untap(sid)
        connection.write(frame_pub(b"b", b"2"))
        await until(lambda: second == [b"1", b"2"])
        assert first == [b"1"]


async def test_a_tap_that_breaks_ends_the_session_with_its_error(settings: Settings) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with connected(settings) as connection:

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        await connection.tap("c", broken)
        connection.write(frame_pub(b"c", b""))
        await asyncio.wait_for(connection.ended.wait(), 5)
        assert isinstance(connection.failure, ZeroDivisionError)


async def test_a_session_without_reconnect_ends_with_its_server(own_server: NatsServer) -> None:
    async with connected(settings_for(own_server), reconnect=False) as connection:
        own_server.kill()
        await asyncio.wait_for(connection.ended.wait(), 5)
        assert connection.failure is not None
        with pytest.raises(Disconnected):
            connection.write(frame_pub(b"d", b""))


async def test_taps_and_requests_live_on_after_a_reconnect(own_server: NatsServer) -> None:
    again = asyncio.Event()

    async def on_reconnect() -> None:
        again.set()

    async with connected(settings_for(own_server), on_reconnect=on_reconnect) as connection:
        got: list[bytes] = []
        await connection.tap("e", lambda _s, _r, payload, _h: got.append(payload))
        own_server.kill()
        own_server.start()
        await asyncio.wait_for(again.wait(), 10)
        connection.write(frame_pub(b"e", b"after"))
        await until(lambda: got == [b"after"])
        assert "streams" in await connection.api("INFO")


async def test_open_replies_fail_when_the_connection_is_lost(own_server: NatsServer) -> None:
    async with connected(settings_for(own_server)) as connection:
        await connection.tap("silent", lambda *_: None)
        asked = connection.ask("silent")
        await connection.api("INFO")
        own_server.kill()
        with pytest.raises(Disconnected):
            await within(asked, 5, "silent")


def opening(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Calls *then* in the turn of the loop in which a socket has been opened, where it was waited for."""
    original = asyncio.open_connection

    async def opened(*arguments: Any, **options: Any) -> Any:
        streams = await original(*arguments, **options)
        then()
        return streams

    monkeypatch.setattr(asyncio, "open_connection", opened)


async def test_a_cancellation_in_the_turn_in_which_the_socket_opens_is_not_forgotten(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting = asyncio.create_task(connect(settings, "test"))
    opening(monkeypatch, connecting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await connecting


async def test_a_session_that_is_closed_while_it_reconnects_stays_closed(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(settings_for(own_server)) as connection:
        closing: list[asyncio.Task[None]] = []
        opening(monkeypatch, lambda: closing.append(asyncio.create_task(connection.close())))
        own_server.restart()
        await until(lambda: closing, what="it has reconnected")
        await closing[0]
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(others, timeout=5) if others else None
        assert (len(closing), connection.is_closed, connection.is_connected) == (1, True, False)


async def test_publishing_is_refused_while_there_is_no_connection(own_server: NatsServer) -> None:
    async with connected(settings_for(own_server)) as connection:
        own_server.kill()
        await until(lambda: not connection.is_connected)
        with pytest.raises(Disconnected):
            connection.write(frame_pub(b"f", b""))
        with pytest.raises(Disconnected):
            await connection.publish("f", b"")
        with pytest.raises(Disconnected):
            connection.ask("f")


async def test_what_waited_for_a_lost_connection_is_never_sent_on_the_next(own_server: NatsServer) -> None:
    async with connected(settings_for(own_server)) as connection:
        await make_stream(connection, "G")
        own_server.pause()
        for _ in range(300):  # 30 MB: more than the sockets take, so that the rest waits
            connection.write(frame_pub(b"elsewhere", bytes(100_000)))
            await asyncio.sleep(0)
        connection.write(frame_pub(b"G.late", b"must not come"))
        await asyncio.sleep(0)
        assert connection.unsent_bytes > 0
        own_server.kill()
        own_server.start()
        await until(lambda: connection.is_connected and connection.stats["reconnects"] == 1)
        await connection.store("G.new", b"after")
        assert await messages_of(connection, "G") == 1


async def test_a_peer_that_hangs_is_left_and_gets_nothing_more_when_it_wakes(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "PING_INTERVAL_S", 0.1)
    async with connected(settings_for(own_server, request_timeout_s=0.3)) as connection:
        await make_stream(connection, "O")
        own_server.pause()
        for _ in range(300):
            connection.write(frame_pub(b"elsewhere", bytes(100_000)))
            await asyncio.sleep(0)
        connection.write(frame_pub(b"O.late", b"must not come"))
        await until(lambda: not connection.is_connected)
        own_server.resume()
        await until(lambda: connection.is_connected and connection.stats["reconnects"] == 1)
        await connection.store("O.new", b"after")
        assert await messages_of(connection, "O") == 1


async def test_cutting_a_session_drops_what_waits(own_server: NatsServer) -> None:
    settings = settings_for(own_server)
    connection = await connect(settings, "cut")
    await make_stream(connection, "H")
    own_server.pause()
    for _ in range(300):
        connection.write(frame_pub(b"elsewhere", bytes(100_000)))
        await asyncio.sleep(0)
    connection.write(frame_pub(b"H.late", b"must not come"))
    await connection.cut()
    assert connection.ended.is_set()
    own_server.resume()
    async with connected(settings) as other:
        assert await messages_of(other, "H") == 0


async def test_messages_sent_together_are_all_stored_when_their_future_ends(settings: Settings) -> None:
    async with connected(settings) as connection:
        await make_stream(connection, "I")
        sent = [
            connection.start_all([(f"I.{i % 7}", f"{number}-{i}", b"x" * i) for i in range(100)])
            for number in range(8)
        ]
        assert not any(one.done() for one in sent)
        for one in sent:
            await within(one, 5, "I")
        assert await messages_of(connection, "I") == 800


async def test_a_message_that_the_stream_has_already_is_told_or_allowed(settings: Settings) -> None:
    async with connected(settings) as connection:
        await make_stream(connection, "K")
        await connection.start_all([("K.1", "a", b""), ("K.1", "b", b"")])
        with pytest.raises(Repeated) as refused:
            await within(connection.start_all([("K.1", "c", b""), ("K.1", "b", b"")]), 5, "K")
        assert refused.value.temporary
        await within(connection.start_all([("K.1", "b", b""), ("K.1", "d", b"")], repeats=True), 5, "K")
        assert await messages_of(connection, "K") == 4


async def test_one_refused_message_fails_all_that_were_sent_with_it(settings: Settings) -> None:
    async with connected(settings) as connection:
        await make_stream(connection, "L", max_msg_size=100)
        with pytest.raises(ApiError):
            await within(connection.start_all([("L.1", "a", b"x"), ("L.1", "b", bytes(500))]), 5, "L")
        with pytest.raises(JetStreamOff, match="no stream"):
            await within(connection.start_all([("nowhere.1", "a", b"x")]), 5, "nowhere")
        with pytest.raises(PayloadTooLarge, match="max_payload"):
            connection.start_all([("L.1", "a", bytes(2_000_000))])
        assert connection._replies == {}


async def test_a_lost_comparison_is_an_error_of_its_own(settings: Settings) -> None:
    async with connected(settings) as connection:
        await make_stream(connection, "M")
        await connection.store("M.1", b"")
        with pytest.raises(WrongLastSequence):
            await connection.store("M.1", b"", headers=b"Nats-Expected-Last-Subject-Sequence:7\r\n")


async def test_a_repeated_message_id_is_acknowledged_as_a_duplicate(settings: Settings) -> None:
    async with connected(settings) as connection:
        await make_stream(connection, "N")
        headers = b"Nats-Msg-Id:same\r\n"
        assert await connection.store("N.1", b"x", headers=headers) == (1, False)
        assert await connection.store("N.1", b"x", headers=headers) == (1, True)


async def test_unanswered_requests_say_what_was_asked(settings: Settings) -> None:
    async with connected(settings) as connection:
        with pytest.raises(NoAnswer, match=r"nobody\.here"):
            await connection.call("nobody.here")
        await connection.tap("mute", lambda *_: None)
        with pytest.raises(NoAnswer, match="mute"):
            await connection.call("mute", timeout_s=0.05)
        with pytest.raises(NotFound):
            await connection.api("STREAM.INFO.NONE")
        with pytest.raises(ApiError):
            await connection.api("STREAM.CREATE.BAD", {"name": "OTHER"})
        assert connection._replies == {}


async def test_no_server_is_an_error_that_names_the_setting(settings: Settings) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = msgspec.structs.replace(settings, nats_servers=f"nats://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ServerUnreachable, match="NATS_SERVERS") as refused:
            await connect(nowhere, "test")
        assert refused.value.temporary


async def test_wrong_credentials_are_an_error_that_names_the_settings() -> None:
    with NatsServer(user="fab", password="right") as server:
        for wrong in ({"nats_password": "wrong"}, {"nats_user": "", "nats_password": ""}):
            given = settings_for(server, **{"nats_user": "fab", **wrong})
            with pytest.raises(CredentialsRefused, match="NATS_PASSWORD"):
                await connect(given, "test")
        async with connected(settings_for(server, nats_user="fab", nats_password="right")) as connection:
            assert connection.is_connected


async def test_a_token_and_a_user_in_the_url_are_accepted() -> None:
    with NatsServer(extra='authorization { token: "let-me-in" }') as server:
        async with connected(settings_for(server, nats_token="let-me-in")) as connection:
            assert connection.is_connected
    with NatsServer(user="fab", password="pw") as server:
        url = server.url.replace("//", "//fab:pw@")
        async with connected(settings_for(server, nats_servers=url)) as connection:
            assert connection.is_connected
        with pytest.raises(CredentialsRefused) as refused:
            await connect(settings_for(server, nats_servers=url.replace("pw", "geheim")), "test")
        assert "geheim" not in str(refused.value)


async def test_a_server_without_jetstream_is_an_error_with_the_remedy() -> None:
    with NatsServer(jetstream=False) as server, pytest.raises(JetStreamOff, match="jetstream"):
        await connect(settings_for(server), "test")


async def test_a_certificate_that_is_none_is_an_error_that_names_the_setting(
    settings: Settings, tmp_path: Path
) -> None:
    bad = tmp_path / "ca.pem"
    bad.write_text("no certificate")
    with pytest.raises(SettingsError, match="NATS_TLS_CA"):
        await connect(msgspec.structs.replace(settings, nats_tls_ca=str(bad)), "test")


async def test_an_nkey_is_accepted_and_a_file_without_one_is_named(tmp_path: Path) -> None:
    nkeys = pytest.importorskip("nkeys", reason="needed for NATS_CREDS and NATS_NKEY_SEED only")
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    good, bad = tmp_path / "good.nk", tmp_path / "bad.nk"
    good.write_bytes(seed)
    bad.write_bytes(seed[:30])
    with NatsServer(extra=f"authorization {{ users = [ {{ nkey: {public} }} ] }}") as server:
        async with connected(settings_for(server, nats_nkey_seed=str(good))) as connection:
            assert connection.is_connected
        for setting in ("nats_nkey_seed", "nats_creds"):
            with pytest.raises(SettingsError, match=setting.upper()):
                await connect(settings_for(server, **{setting: str(bad)}), "test")


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} "
        f"-addext subjectAltName=IP:127.0.0.1,DNS:fab.example -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
async def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    (ours, our_key), (theirs, their_key) = certificate(tmp_path, "client"), certificate(tmp_path, "server")
    tls = f'tls {{ cert_file: "{theirs}", key_file: "{their_key}", ca_file: "{ours}", verify: true }}'
    with NatsServer(extra=tls) as server:
        good = {
            "nats_servers": server.url.replace("nats:", "tls:"),
            "nats_tls_ca": str(theirs),
            "nats_tls_cert": str(ours),
            "nats_tls_key": str(our_key),
        }
        async with connected(settings_for(server, **good)) as connection:
            assert connection.is_connected
        async with connected(settings_for(server, **good, nats_tls_hostname="fab.example")) as connection:
            assert connection.is_connected
        for wrong in ({"nats_tls_ca": str(ours)}, {"nats_tls_hostname": "other.example"}):
            with pytest.raises(ServerUnreachable, match="NATS_TLS_CA"):
                await connect(settings_for(server, **{**good, **wrong}), "test")
        without = {**good, "nats_tls_cert": "", "nats_tls_key": ""}
        with pytest.raises(ServerUnreachable, match="NATS_TLS_CERT"):
            await connect(settings_for(server, **without), "test")


class CountingRandom(Random):
    """Counts the draws: one for each pause between two tries."""

    draws = 0

    def random(self) -> float:
        self.draws += 1
        return super().random()


async def test_waiting_for_a_server_logs_each_cause_once(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.stop()
    random = CountingRandom(1)
    with caplog.at_level(logging.WARNING, logger="defender"):
        dialling = asyncio.create_task(connect(settings_for(own_server), "test", wait=True, random=random))
        await until(lambda: random.draws >= 3)
        assert [record.getMessage() for record in caplog.records] == ["waiting for NATS"]
        own_server.start()
        connection = await asyncio.wait_for(dialling, 10)
    await connection.close()


def test_nats_py_still_has_what_the_connection_touches() -> None:
    source = inspect.getsource(connection_module.Connection)
    client = connection_module.Connection.__mro__[1]
    theirs = {name for name in vars(client()) if name.startswith("_")} | set(vars(client))
    used = set(re.findall(r"(?:self|super\(\))\.(_[a-z]\w*)", source)) | set(
        re.findall(r"def (_[a-z]\w*)", source)
    )
    assert used & theirs == set(connection_module.TOUCHED)
    assert "_io_writer" in vars(connection_module.nats.aio.transport.TcpTransport())
    assert list(inspect.signature(client._process_msg).parameters) == [
        "self", "sid", "subject", "reply", "data", "headers",
    ]  # fmt: skip
    assert list(inspect.signature(client._send_command).parameters) == ["self", "cmd", "priority"]


def test_no_other_module_touches_what_is_private_to_nats_py() -> None:
    touched = [
        f"{path.name}: {line.strip()}"
        for path in Path(runtime.__file__).parent.rglob("*.py")
        if path.name != "connection.py"
        for line in path.read_text().splitlines()
        if re.search(r"\bconnection\._[a-z]|\bnats\.\w+\._[a-z]", line)
    ]
    assert touched == []


def test_claiming_needs_no_slow_import() -> None:
    code = (
        "import sys, runtime.config, runtime.identity, runtime.resources, runtime.ownership, runtime.ring, "
        "runtime.membership; "
        "print([m for m in ('aiohttp', 'numpy', 'numba', 'typer', 'rich', 'yaml') if m in sys.modules])"
    )
    root = Path(runtime.__file__).parent.parent
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert shown.stdout.strip() == "[]"
