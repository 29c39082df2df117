"""deploy/nats/permissions.conf on a real nats-server: each role does its whole job, and nothing else."""

from __future__ import annotations

import asyncio
import random
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fleet import connected, until

from bench.lab.pods import Pod, another, brisk, environment
from runtime import permissions
from runtime.bus import NoAnswer, PermissionRefused, connect, within
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.permissions import Role
from runtime.resources import ensure
from tests.load import SPECS, Fleet, Publisher

FILE = Path(__file__).parents[2] / "deploy/nats/permissions.conf"
SEED = random.SystemRandom().randrange(10**6)
AUDITOR = "auditor"
"""A user without limits, beside those of the file: reads the samples."""
DENIED = 77


def configured(text: str) -> str:
    """The users of a permissions file, and the auditor, for nats-server's configuration."""
    auditor = f"users = [ {{ user: {AUDITOR}, password: {AUDITOR} }}"
    return f"authorization {{\n{text.replace('users = [', auditor, 1)}}}"


@pytest.fixture
def guarded_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsServer]:
    """A nats-server of one test with the file as it is deployed."""
    yield from serving(FILE.read_text(), monkeypatch)


def serving(text: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[NatsServer]:
    for role in Role:
        monkeypatch.setenv(permissions.password_variable(role), f"secret-of-{role}")
    with NatsServer(extra=configured(text), **options) as server:
        yield server


def as_user(server: NatsServer, user: str, **changes: Any) -> Settings:
    """Default names, logged in as a role or as the auditor."""
    password = AUDITOR if user == AUDITOR else f"secret-of-{user}"
    return Settings(nats_servers=server.url, nats_user=str(user), nats_password=password, **changes)


async def command(settings: Settings, *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one `defender` command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runtime", *argv),
        env=environment(settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def done(settings: Settings, *argv: str) -> str:
    """The output of a command that succeeds."""
    code, out, err = await command(settings, *argv)
    assert code == 0, f"{argv}: {code}: {err}"
    assert "permission" not in err, err
    return out


def refusals(pod: Pod) -> list[str]:
    """The subjects that the server refused to a pod, by its log."""
    found = [line["cause"] for line in pod.lines("permission refused")]
    return sorted({match[1] for cause in found if (match := re.search(r"(?:publish|to) (\S+):", cause))})


@asynccontextmanager
async def audited(settings: Settings) -> AsyncIterator[Fleet]:
    async with connected(settings) as connection:
        yield Fleet(settings, connection)


@pytest.mark.limit_s(120)
async def test_each_role_does_its_whole_job(guarded_server: NatsServer, tmp_path: Path) -> None:
    """Pods that are there first wait for `defender init`; then they claim, own, judge, lead, hand over."""
    usual = brisk(max_defenders=2)
    operator, producer = (as_user(guarded_server, role, **usual) for role in ("operator", "producer"))
    first = as_user(guarded_server, "defender", **usual, pod_name="first", pod_uid="uid-first")
    with Pod(first) as one, Pod(another(first, "second"), start=False) as two:
        await until(lambda: refusals(one), what="the pod may make no stream", deadline_s=20)
        assert one.exit_code is None
        assert all(subject.startswith("$JS.API.STREAM.CREATE.") for subject in refusals(one))
        assert one.said("defender init")
        await done(operator, "init")
        await one.wait_serving()
        await two.start().wait_serving()
        made_before = refusals(one)
        async with audited(as_user(guarded_server, AUDITOR, **usual)) as outside:
            async with connected(operator) as connection:
                by_operator = Fleet(operator, connection)
                await by_operator.apply(SPECS)
                outside.specs = by_operator.specs
            await operate(operator, producer, tmp_path)
            await until(lambda: len(two.lines("claimed")) == 2, what="the drained pod takes part again")
            await until(two.is_serving, what="it serves")
            async with connected(producer) as connection:
                publisher = Publisher(connection, producer, seed=SEED)
                publisher.begin()
                await publisher.more(500)
                two.sigterm()  # hands its partitions over, warm
                assert await two.wait_exit() == 0
                await publisher.more(300)
                await publisher.finish()
            await outside.audit()
        assert (refusals(one), refusals(two)) == (made_before, [])
        assert one.metric("defender_handoffs_total") + two.metric("defender_handoffs_total") > 0


async def judged(settings: Settings) -> bool:
    """Whether there is a verdict."""
    return "ETCH-01" in await done(settings, "verdicts")


async def operate(operator: Settings, producer: Settings, folder: Path) -> None:
    """Every kind of act of an operator, of a monitor and of host software."""
    report = {"run": "L1", "charts": ["p"], "counts": [3], "units": [25.0]}
    reports = folder / "reports.ndjson"
    reports.write_bytes(msgspec.json.encode({"chamber": "ETCH-01", **report}) + b"\n")
    await done(producer, "publish", str(reports))
    await until(lambda: judged(operator), what="the report is judged")
    monitor = msgspec.structs.replace(operator, nats_user="monitor", nats_password="secret-of-monitor")
    for argv in (["status"], ["ring"], ["where", "ETCH-01"], ["alarms"], ["rejected"], ["specs", "show"]):
        await done(monitor, *argv)
    await done(operator, "status")
    await done(monitor, "history", "show", "ETCH-01")
    await done(operator, "freeze", "--reason", "test")
    await done(operator, "unfreeze")
    await done(operator, "drain", "defender-1")
    await done(operator, "drain", "second", "--undo")


FORBIDDEN = [
    ("producer", "tfdc.verdict.1.ETCH-01"),
    ("producer", "tfdc.alarm.ETCH-01"),
    ("producer", "tfdc.rejected.ETCH-01"),
    ("producer", "tfdc.in.1.ETCH-01"),
    ("producer", "tfdc.pod.uid-first"),
    ("producer", "$KV.chart-specs.specs"),
    ("producer", "$KV.stable-ids.defender-0"),
    ("producer", "$JS.API.DIRECT.GET.VERDICTS"),
    ("producer", "$JS.API.STREAM.MSG.GET.SAMPLES"),
    ("producer", "$JS.API.CONSUMER.CREATE.VERDICTS"),
    ("producer", "$JS.API.STREAM.DELETE.SAMPLES"),
    ("producer", "$JS.API.STREAM.PURGE.SAMPLES"),
    ("producer", "$JS.API.STREAM.CREATE.OTHER"),
    ("producer", "$JS.ACK.SAMPLES.p1-e1.1"),
    ("defender", "tfdc.sample.ETCH-01"),
    ("defender", "$KV.chart-specs.specs"),
    ("defender", "$JS.API.STREAM.CREATE.SAMPLES"),
    ("defender", "$JS.API.STREAM.UPDATE.VERDICTS"),
    ("defender", "$JS.API.STREAM.DELETE.VERDICTS"),
    ("defender", "$JS.API.STREAM.PURGE.SAMPLES"),
    ("defender", "$JS.API.STREAM.MSG.DELETE.VERDICTS"),
    ("defender", "$JS.API.STREAM.DELETE.KV_stable-ids"),
    ("defender", "$JS.API.STREAM.SNAPSHOT.VERDICTS"),
    ("defender", "$JS.API.STREAM.NAMES"),
    ("defender", "$JS.API.META.LEADER.STEPDOWN"),
    ("defender", "$SYS.REQ.SERVER.PING"),
    ("defender", "other.subject"),
    ("operator", "$JS.API.STREAM.DELETE.SAMPLES"),
    ("operator", "$JS.API.STREAM.PURGE.VERDICTS"),
    ("operator", "$JS.API.STREAM.CREATE.OTHER"),
    ("operator", "$JS.API.CONSUMER.DELETE.SAMPLES.p1-e1"),
    ("operator", "$KV.defender-heartbeats.uid-first"),
    ("operator", "$KV.defender-leader.leader"),
    ("operator", "tfdc.alarm.ETCH-01"),
    ("monitor", "tfdc.sample.ETCH-01"),
    ("monitor", "tfdc.verdict.1.ETCH-01"),
    ("monitor", "tfdc.pod.uid-first"),
    ("monitor", "$KV.defender-assignments.frozen"),
    ("monitor", "$JS.API.STREAM.UPDATE.SAMPLES"),
    ("monitor", "$JS.API.CONSUMER.CREATE.SAMPLES.p1-e9"),
    ("monitor", "$JS.API.CONSUMER.DELETE.SAMPLES.p1-e1"),
]
UNHEARD = [
    ("producer", "tfdc.sample.>"),
    ("producer", "tfdc.verdict.>"),
    ("producer", ">"),
    ("producer", "_INBOX.>"),
    ("producer", "_INBOX_operator.>"),
    ("defender", "tfdc.sample.>"),
    ("defender", "_INBOX_producer.>"),
    ("operator", "tfdc.pod.>"),
    ("monitor", "$KV.>"),
]


async def test_what_is_not_a_roles_job_is_refused_at_once_with_the_user_and_the_subject(
    guarded_server: NatsServer,
) -> None:
    """And with the role that may. Streams are there, so that nothing but the permission is missing."""
    async with connected(as_user(guarded_server, "operator")) as connection:
        await ensure(connection, as_user(guarded_server, "operator"))
    for role in Role:
        async with connected(as_user(guarded_server, role)) as connection:
            for subject in [subject for who, subject in FORBIDDEN if who == role]:
                with pytest.raises(
                    PermissionRefused, match=f"'{role}' publish {re.escape(subject)}: "
                ) as said:
                    await within(connection.ask(subject, b"{}"), 5, subject)
                may = permissions.roles_that_publish(Settings(), subject)
                assert role not in may
                assert "STREAM.CREATE" in subject or all(other in str(said.value) for other in may)
            assert "streams" in await connection.api("INFO"), "and the session goes on"


async def test_a_role_hears_nothing_but_what_is_for_it(
    guarded_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    auditor = as_user(guarded_server, AUDITOR)
    async with connected(auditor) as everything:
        await ensure(everything, auditor)
        for role, subject in UNHEARD:
            caplog.clear()
            async with connected(as_user(guarded_server, role)) as connection:
                heard: list[bytes] = []
                await connection.tap(subject, lambda named, *_, to=heard: to.append(named))
                await connection.api("INFO")
                shown = subject.replace(">", "1.x") if subject != ">" else "tfdc.sample.x"
                await everything.publish(shown, b"secret")
                await everything.flush()
                await connection.api("INFO")  # behind what was published
                own = f"{connection.inbox().decode()[: len('_INBOX_') + len(role)]}"
                assert [name for name in heard if not name.startswith(own.encode())] == []
                lines = [record for record in caplog.records if record.getMessage() == "permission refused"]
                assert subject in str(vars(lines[0])), lines


async def test_a_command_that_may_not_says_so_in_one_line_and_leaves_with_77(
    guarded_server: NatsServer, tmp_path: Path
) -> None:
    await done(as_user(guarded_server, "operator"), "init")
    reports = tmp_path / "reports.ndjson"
    reports.write_text('{"chamber": "C", "run": "r", "charts": ["p"], "counts": [1], "units": [2.0]}\n')
    code, _, err = await command(as_user(guarded_server, "monitor"), "publish", str(reports))
    assert code == DENIED
    assert "does not let the user 'monitor' publish tfdc.sample.C" in err
    assert "producer or operator" in err
    assert "Traceback" not in err


async def test_a_user_whose_replies_are_not_let_through_is_told_and_does_not_wait_in_vain() -> None:
    deaf = 'authorization { users = [ { user: x, password: y, permissions: { subscribe: "other" } } ] }'
    with NatsServer(extra=deaf) as server:
        settings = Settings(nats_servers=server.url, nats_user="x", nats_password="y", request_timeout_s=5.0)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(PermissionRefused, match="'x' subscribe to _INBOX_x"):
            await connect(settings, "test")
        assert asyncio.get_running_loop().time() - begun < settings.request_timeout_s / 2
        assert issubclass(PermissionRefused, NoAnswer)


async def test_a_sharded_fleet_gets_its_own_permissions(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 partitions, four streams, another root: the account's mapping is the server's, the file is made."""
    sharded = {"partitions": 256, "subject_root": "fab"}
    text = permissions.configuration(Settings(**sharded))
    for server in serving(text, monkeypatch, names=Settings(**sharded).names):
        for role in (Role.OPERATOR, Role.DEFENDER):  # the second finds all there, and tries the mapping out
            settings = as_user(server, role, **sharded)
            async with connected(settings) as connection:
                await ensure(connection, settings)
        async with connected(as_user(server, Role.PRODUCER, **sharded)) as connection:
            assert await connection.store("fab.sample.ETCH-01", b"{}") == (1, False)
            with pytest.raises(PermissionRefused):
                await connection.store("fab.verdict.1.ETCH-01", b"{}")


def test_the_deployed_file_is_the_one_for_the_default_settings() -> None:
    """Made anew by: defender permissions > deploy/nats/permissions.conf"""
    assert FILE.read_text() == permissions.configuration(Settings())


def test_the_mapping_is_tried_out_as_often_as_is_permitted() -> None:
    from runtime import resources

    assert permissions.MAPPING_PROBES == resources._PROBES


@pytest.mark.parametrize(
    ("rule", "subject", "is_covered"),
    [
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.b.d", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.*", "a.b.c", False),
        ("a.b", "a.b", True),
    ],
)
def test_a_rule_covers_what_its_wildcards_say(rule: str, subject: str, is_covered: bool) -> None:
    assert permissions.covers(rule, subject) is is_covered
