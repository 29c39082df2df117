"""Settings: each is read from the environment, each is checked, and an error names the one to change."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.config import (
    MASK,
    RELATIONS,
    History,
    Identity,
    LogFormat,
    LogLevel,
    Relation,
    Settings,
    check,
    load,
    sources,
)
from runtime.errors import SettingsError
from runtime.names import Names

FIELDS = {f.name: f for f in msgspec.structs.fields(Settings)}
SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
UNUSUAL = {
    "nats_servers": "tls://a:4222, nats://u:pw@b",
    "max_defenders": "1",
    "identity": "ordinal",
    "ring_join": "manual",
    "pod_deletion_cost": "off",
    "history": "cassandra",
    "id_range": "3-7",
    "log_format": "json",
    "log_level": "debug",
    "http_host": "127.0.0.1",
    "pod_name": "defender-7f9c-x2",
    "pod_uid": "0b0e3a52-6c0e-4d0f-9f7e-000000000001",
    "cassandra_contact_points": "cas-0.cas:9043, [::1]:9042",
    "cassandra_replication": "datacenter1:3,west:2",
    "cassandra_consistency": "quorum",
}
BESIDE = {
    "nats_user": {"NATS_PASSWORD": "pw"},
    "nats_password": {"NATS_USER": "u"},
    "cassandra_user": {"CASSANDRA_PASSWORD": "pw"},
    "cassandra_password": {"CASSANDRA_USER": "u"},
    "cassandra_datacenter": {"CASSANDRA_REPLICATION": "other:1"},
}


def unusual_value(name: str, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """A legal text for the field that is not its default, and what must be set beside it."""
    path = tmp_path / "file"
    path.write_text("x")
    beside = dict(BESIDE.get(name, {}))
    if name in UNUSUAL:
        return UNUSUAL[name], beside
    if name in ("nats_tls_cert", "nats_tls_key"):
        return str(path), {"NATS_TLS_CERT": str(path), "NATS_TLS_KEY": str(path)}
    if name in ("cassandra_tls_cert", "cassandra_tls_key", "cassandra_tls_hostname"):
        ours = {"CASSANDRA_TLS_CA": str(path)}
        if name != "cassandra_tls_hostname":
            ours |= {"CASSANDRA_TLS_CERT": str(path), "CASSANDRA_TLS_KEY": str(path)}
        return str(path), ours
    if name in ("nats_tls_ca", "cassandra_tls_ca", "nats_creds", "nats_nkey_seed"):
        return str(path), beside
    base, default = get_args(FIELDS[name].type)[0], FIELDS[name].default
    if base is float:
        return f"{default * 1.01:.6g}", beside
    if base is int:
        return str(default - 1 if name in ("window", "batch_reports_max") else default + 1), beside
    return "other", beside


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_read_from_its_variable(name: str, tmp_path: Path) -> None:
    text, beside = unusual_value(name, tmp_path)
    settings = load({**beside, name.upper(): text})
    value = getattr(settings, name)
    base = get_args(FIELDS[name].type)[0]
    assert isinstance(value, base)
    assert value == base(text)
    shown = next(s for s in sources({**beside, name.upper(): text}) if s.name == name.upper())
    assert shown.source == "environment"


def test_an_empty_environment_gives_settings_that_pass_their_own_checks() -> None:
    settings = load({})
    check(settings)
    assert settings.identity is Identity.CLAIM
    assert settings.history is History.JETSTREAM
    assert settings.log_level is LogLevel.INFO
    assert settings.log_format in LogFormat
    assert all(s.source == "default" and s.meaning for s in sources({}))
    assert [s.name for s in sources({})] == [name.upper() for name in FIELDS]


def test_an_empty_variable_counts_as_unset_and_a_foreign_one_is_ignored() -> None:
    assert load({"WORKERS": "", "NATS_USER": "", "DEFENDER_WORKRES": "x", "PATH": "/bin"}).workers == 2


def test_the_pod_is_named_after_hostname_and_two_loads_are_two_pods() -> None:
    first, second = load({"HOSTNAME": "pod-a"}), load({"HOSTNAME": "pod-a", "POD_NAME": "pod-b"})
    assert (first.pod_name, second.pod_name) == ("pod-a", "pod-b")
    assert first.pod_uid != second.pod_uid


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WORKERS", "0"),
        ("WORKERS", "65"),
        ("WORKERS", "two"),
        ("WORKERS", "2.5"),
        ("PARTITIONS", "4097"),
        ("WINDOW", "15"),
        ("DRAIN_S", "10"),
        ("RENEW_S", "nan"),
        ("PULL_EXPIRES_S", "inf"),
        ("PULL_EXPIRES_S", "-1"),
        ("HTTP_PORT", "tcp://10.0.0.1:80"),
        ("HTTP_PORT", "65536"),
        ("IDENTITY", "random"),
        ("LOG_FORMAT", "xml"),
        ("HISTORY", "redis"),
        ("MAX_DEFENDERS", "-1"),
        ("ID_RANGE", "7-3"),
        ("ID_RANGE", "-1-3"),
        ("ID_RANGE", "0-10000"),
        ("ID_RANGE", "a"),
        ("SUBJECT_ROOT", "a.b"),
        ("STREAM_SAMPLES", "two words"),
        ("STREAM_SAMPLES", "newline\n"),
        ("STREAM_ALARMS", "SAMPLES"),
        ("NATS_KV_LEADER", "stable-ids"),
        ("POD_UID", "a b"),
        ("POD_UID", ".a"),
        ("NATS_SERVERS", " , "),
        ("NATS_SERVERS", "http://host:4222"),
        ("NATS_SERVERS", "nats://host name"),
        ("NATS_CREDS", "/nowhere/user.creds"),
        ("NATS_TLS_CA", "/nowhere/ca.pem"),
        ("CASSANDRA_CONTACT_POINTS", " , "),
        ("CASSANDRA_CONTACT_POINTS", "http://host:9042"),
        ("CASSANDRA_CONTACT_POINTS", "host:0"),
        ("CASSANDRA_CONTACT_POINTS", "host:65536"),
        ("CASSANDRA_CONTACT_POINTS", "a b"),
        ("CASSANDRA_CONTACT_POINTS", "[::1"),
        ("CASSANDRA_KEYSPACE", "Defender"),
        ("CASSANDRA_KEYSPACE", "a-b"),
        ("CASSANDRA_REPLICATION", ","),
        ("CASSANDRA_REPLICATION", "3"),
        ("CASSANDRA_REPLICATION", "datacenter1"),
        ("CASSANDRA_REPLICATION", "datacenter1:0"),
        ("CASSANDRA_REPLICATION", "datacenter1:17"),
        ("CASSANDRA_REPLICATION", "datacenter1:1,datacenter1:2"),
        ("CASSANDRA_REPLICATION", "west:3"),
        ("CASSANDRA_CONSISTENCY", "most"),
        ("CASSANDRA_TLS_CA", "/nowhere/ca.pem"),
        ("HISTORY_TTL_S", "0"),
    ],
)
def test_a_wrong_value_is_refused_by_an_error_that_names_the_variable(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({name: text})
    assert refused.value.setting == name
    assert str(refused.value).startswith(f"{name}: ")


def test_a_word_of_a_choice_may_be_in_capitals() -> None:
    assert load({"LOG_LEVEL": "WARNING", "IDENTITY": " Pod "}).identity is Identity.POD


def test_an_error_says_what_a_value_must_be() -> None:
    with pytest.raises(SettingsError, match=r"ID_RANGE: '7-3' ends before it begins: write 3-7"):
        load({"ID_RANGE": "7-3"})
    with pytest.raises(SettingsError, match=r"WORKERS: 'x' is not a whole number >= 1, <= 64"):
        load({"WORKERS": "x"})
    with pytest.raises(SettingsError, match=r"IDENTITY: 'x' is not one of claim, ordinal, pod"):
        load({"IDENTITY": "x"})


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"NATS_USER": "u"}, "NATS_PASSWORD"),
        ({"NATS_PASSWORD": "p"}, "NATS_USER"),
        ({"NATS_TLS_CERT": "FILE"}, "NATS_TLS_KEY"),
        ({"NATS_TLS_KEY": "FILE"}, "NATS_TLS_CERT"),
        ({"NATS_TOKEN": "t", "NATS_USER": "u", "NATS_PASSWORD": "p"}, "NATS_TOKEN"),
        ({"NATS_CREDS": "FILE", "NATS_NKEY_SEED": "FILE"}, "NATS_NKEY_SEED"),
        ({"CASSANDRA_USER": "u"}, "CASSANDRA_PASSWORD"),
        ({"CASSANDRA_PASSWORD": "p"}, "CASSANDRA_USER"),
        ({"CASSANDRA_TLS_CERT": "FILE", "CASSANDRA_TLS_CA": "FILE"}, "CASSANDRA_TLS_KEY"),
        ({"CASSANDRA_TLS_KEY": "FILE", "CASSANDRA_TLS_CA": "FILE"}, "CASSANDRA_TLS_CERT"),
        ({"CASSANDRA_TLS_KEY": "FILE", "CASSANDRA_TLS_CERT": "FILE"}, "CASSANDRA_TLS_CA"),
        ({"CASSANDRA_TLS_HOSTNAME": "cas"}, "CASSANDRA_TLS_CA"),
    ],
)
def test_half_a_login_or_two_of_them_are_refused(environ: dict[str, str], named: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(SettingsError) as refused:
        load({key: str(path) if value == "FILE" else value for key, value in environ.items()})
    assert refused.value.setting == named


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.setting)
@given(factor=st.floats(0.2, 5), drawn=st.randoms(use_true_random=False))
def test_settings_load_exactly_when_their_relations_hold(
    relation: Relation, factor: float, drawn: Any
) -> None:
    """A setting and the one that bounds it vary around the bound: accepted or refused as the table says."""
    base = get_args(FIELDS[relation.setting].type)[0]
    other = getattr(load({}), relation.other) * drawn.choice([1, 1, 1.25])
    changed: dict[str, Any] = {
        relation.setting: base(relation.factor * other * drawn.choice([1, factor])),
        relation.other: get_args(FIELDS[relation.other].type)[0](other),
    }
    settings = msgspec.structs.replace(load({}), **changed)
    broken = [
        r.setting.upper()
        for r in RELATIONS
        if not SIGNS[r.sign](getattr(settings, r.setting), r.factor * getattr(settings, r.other))
    ]
    if not broken:
        check(settings)
        return
    with pytest.raises(SettingsError) as refused:
        check(settings)
    assert refused.value.setting == broken[0]
    assert "must be" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("host", [("host", 9042)]),
        (
            " cas-0.cas:9043 ,cas-1.cas,, 10.0.0.3:1",
            [("cas-0.cas", 9043), ("cas-1.cas", 9042), ("10.0.0.3", 1)],
        ),
        ("[::1]:9043,[fd00::2]", [("::1", 9043), ("fd00::2", 9042)]),
        ("::1, fd00::2", [("::1", 9042), ("fd00::2", 9042)]),
        ("a,b,a:9042", [("a", 9042), ("b", 9042)]),
    ],
)
def test_contact_points_are_hosts_and_ports(text: str, points: list[tuple[str, int]]) -> None:
    assert load({"CASSANDRA_CONTACT_POINTS": text}).contact_points == points


def test_replication_is_replicas_by_datacenter() -> None:
    settings = load({"CASSANDRA_REPLICATION": "east:3, west-2:2", "CASSANDRA_DATACENTER": "east"})
    assert settings.replication == {"east": 3, "west-2": 2}
    with pytest.raises(SettingsError, match=r"'west:x' is not a datacenter and its number .* such as dc1:3"):
        load({"CASSANDRA_REPLICATION": "datacenter1:3,west:x"})
    with pytest.raises(SettingsError, match=r"no replica in CASSANDRA_DATACENTER 'north': .* north:3"):
        load({"CASSANDRA_REPLICATION": "east:3", "CASSANDRA_DATACENTER": "north"})


@pytest.mark.parametrize(
    ("level", "replication", "is_right"),
    [
        ("local_one", "datacenter1:1,west:3", True),
        ("local_one", "datacenter1:2", False),
        ("one", "datacenter1:1", True),
        ("one", "datacenter1:1,west:1", False),
        ("local_quorum", "datacenter1:3,west:3", True),
    ],
)
def test_a_consistency_whose_reads_can_miss_a_write_is_refused(
    level: str, replication: str, is_right: bool
) -> None:
    environ = {"CASSANDRA_CONSISTENCY": level, "CASSANDRA_REPLICATION": replication}
    if is_right:
        load(environ)
        return
    with pytest.raises(SettingsError, match="a read can miss what was written") as refused:
        load(environ)
    assert refused.value.setting == "CASSANDRA_CONSISTENCY"


@given(first=st.integers(0, 9999), size=st.integers(1, 50), spaces=st.sampled_from(["", " "]))
def test_an_id_range_holds_both_of_its_ends(first: int, size: int, spaces: str) -> None:
    last = min(9999, first + size - 1)
    assert load({"ID_RANGE": f"{first}{spaces}-{spaces}{last}"}).ids == range(first, last + 1)
    assert load({"ID_RANGE": str(first)}).ids == range(first, first + 1)


def test_servers_are_a_list_and_a_bare_host_gets_a_scheme() -> None:
    settings = load({"NATS_SERVERS": "tls://a:4222, b:4223,[::1]:4222"})
    assert settings.servers == ["tls://a:4222", "nats://b:4223", "nats://[::1]:4222"]


def test_names_follow_the_settings() -> None:
    settings = load({"SUBJECT_ROOT": "fab2", "PARTITIONS": "128", "STREAM_SAMPLES": "IN"})
    assert settings.names == Names(root="fab2", partitions=128, samples="IN")


def test_no_secret_is_shown_anywhere() -> None:
    environ = {
        "NATS_SERVERS": "nats://root:hunter2@a:4222,u:hunter2@b",
        "NATS_USER": "u",
        "NATS_PASSWORD": "hunter2",
        "CASSANDRA_USER": "u",
        "CASSANDRA_PASSWORD": "hunter2",
    }
    shown = {s.name: s for s in sources(environ)}
    assert shown["NATS_PASSWORD"].secret
    assert shown["NATS_PASSWORD"].value == MASK
    assert shown["CASSANDRA_PASSWORD"].value == MASK
    assert shown["NATS_TOKEN"].value == ""
    assert shown["NATS_SERVERS"].value == f"nats://{MASK}@a:4222,{MASK}@b"
    assert "hunter2" not in repr(shown) + repr(load(environ)) + str(load(environ))
    with pytest.raises(SettingsError) as refused:
        load({"NATS_SERVERS": "nats://root:hunter2@a b"})
    assert "hunter2" not in str(refused.value)
    with pytest.raises(SettingsError) as refused:
        load({"CASSANDRA_CONTACT_POINTS": "root:hunter2@a:9042"})
    assert "hunter2" not in str(refused.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load({}).workers = 3  # type: ignore[misc]
