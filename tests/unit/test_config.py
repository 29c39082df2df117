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
    "history": "jetstream",
    "id_range": "3-7",
    "log_format": "json",
    "log_level": "debug",
    "http_host": "127.0.0.1",
    "pod_name": "defender-7f9c-x2",
    "pod_uid": "0b0e3a52-6c0e-4d0f-9f7e-000000000001",
}
BESIDE = {
    "nats_user": {"NATS_PASSWORD": "pw"},
    "nats_password": {"NATS_USER": "u"},
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
    if name.startswith("nats_tls_ca") or name in ("nats_creds", "nats_nkey_seed"):
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
        ("HISTORY", "cassandra"),
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
    }
    shown = {s.name: s for s in sources(environ)}
    assert shown["NATS_PASSWORD"].secret
    assert shown["NATS_PASSWORD"].value == MASK
    assert shown["NATS_TOKEN"].value == ""
    assert shown["NATS_SERVERS"].value == f"nats://{MASK}@a:4222,{MASK}@b"
    assert "hunter2" not in repr(shown) + repr(load(environ)) + str(load(environ))
    with pytest.raises(SettingsError) as refused:
        load({"NATS_SERVERS": "nats://root:hunter2@a b"})
    assert "hunter2" not in str(refused.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load({}).workers = 3  # type: ignore[misc]
