"""What each kind of user may do at the NATS server: the least that its job takes.

- **defender**: a pod. Reads and writes what a fleet keeps; makes and deletes consumers of the samples; makes,
  changes and deletes no stream and no bucket.
- **producer**: host software. Publishes reports; reads nothing.
- **operator**: a person or a job with the commands of the runbook. Makes streams and buckets (`defender
  init`); deletes and purges none: that is the account's administrator's.
- **monitor**: reads what there is, changes nothing.

A rule is a subject, wildcards allowed; every user hears replies under a subject of its own
(`runtime.credentials.inbox_of`). Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from runtime.credentials import inbox_of
from runtime.names import PARTITIONS_A_STREAM, Names

if TYPE_CHECKING:
    from runtime.config import Settings

RESPONSE_S_MAX: Final = 60
"""How long a request may be answered."""
MAPPING_PROBES: Final = 16
"""`runtime.resources` publishes as many, which no stream keeps, to see whether the mapping is right."""
_API: Final = "$JS.API"


class Role(StrEnum):
    """What a user is there for."""

    DEFENDER = "defender"
    PRODUCER = "producer"
    OPERATOR = "operator"
    MONITOR = "monitor"


class Permissions(NamedTuple):
    """Subjects that may be published and subscribed; *responds*: also to the reply subject of a request."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    responds: bool = False


class Kept(NamedTuple):
    """The streams of a fleet, buckets as their streams."""

    samples: list[str]
    verdicts: list[str]
    logs: list[str]
    buckets: list[str]

    @property
    def streams(self) -> list[str]:
        return [*self.samples, *self.verdicts, *self.logs, *(f"KV_{bucket}" for bucket in self.buckets)]


def kept(settings: Settings) -> Kept:
    """What a fleet with these settings keeps at the server."""
    names = settings.names
    firsts = range(0, names.partitions, PARTITIONS_A_STREAM)
    return Kept(
        [names.samples_stream(first) for first in firsts],
        [names.verdicts_stream(first) for first in firsts],
        [names.alarms, names.rejected],
        [
            settings.nats_kv_stable_ids,
            settings.nats_kv_heartbeats,
            settings.nats_kv_assignments,
            settings.nats_kv_leader,
            settings.nats_kv_chart_specs,
        ],
    )


def permissions(settings: Settings, role: Role, user: str = "") -> Permissions:
    """What *user*, by default called as the role is, may do as *role*."""
    inbox = f"{inbox_of(user or role)}.>"
    rules = {
        Role.DEFENDER: _defender,
        Role.PRODUCER: _producer,
        Role.OPERATOR: _operator,
        Role.MONITOR: _monitor,
    }
    publish = (f"{_API}.INFO", *rules[role](settings))
    if role is Role.DEFENDER:
        pods = settings.names.pod("*")
        return Permissions(publish, (inbox, pods, f"{pods}.memory.*"), responds=True)
    return Permissions(publish, (inbox,))


def roles_that_publish(settings: Settings, subject: str) -> list[Role]:
    """The roles that may publish on *subject*."""
    return [
        role for role in Role if any(covers(rule, subject) for rule in permissions(settings, role).publish)
    ]


def covers(rule: str, subject: str) -> bool:
    """Whether a subject, wildcards allowed, has *subject*."""
    wanted, given = rule.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(given) <= len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(w in ("*", g) for w, g in zip(wanted, given, strict=True))


def _defender(settings: Settings) -> Iterable[str]:
    names, there = settings.names, kept(settings)
    yield from (f"{_API}.STREAM.INFO.{stream}" for stream in there.streams)
    for stream in there.samples:
        yield f"{_API}.CONSUMER.LIST.{stream}"
        yield f"{_API}.CONSUMER.CREATE.{stream}.*"
        yield f"{_API}.CONSUMER.DELETE.{stream}.*"
        yield f"{_API}.CONSUMER.MSG.NEXT.{stream}.*"
        yield f"$JS.ACK.{stream}.>"
    for stream in [*there.verdicts, *(f"KV_{bucket}" for bucket in there.buckets)]:
        yield from _reading(stream)
    # The charts' specs are an operator's.
    yield from (f"$KV.{bucket}.>" for bucket in there.buckets if bucket != settings.nats_kv_chart_specs)
    yield from (f"{names.root}.verdict.*.*", names.alarm(), names.reject())
    yield from (names.pod("*"), f"{names.pod('*')}.memory.*")
    yield from _mapping_probes(names)


def _producer(settings: Settings) -> Iterable[str]:
    yield from _samples(settings.names)
    yield from (f"{_API}.STREAM.INFO.{stream}" for stream in kept(settings).samples)


def _monitor(settings: Settings) -> Iterable[str]:
    there = kept(settings)
    yield from (f"{_API}.STREAM.INFO.{stream}" for stream in there.streams)
    yield from (f"{_API}.CONSUMER.LIST.{stream}" for stream in there.samples)
    for stream in there.streams[len(there.samples) :]:
        yield from _reading(stream)


def _operator(settings: Settings) -> Iterable[str]:
    names, there = settings.names, kept(settings)
    yield from _monitor(settings)
    for stream in there.streams:
        yield f"{_API}.STREAM.CREATE.{stream}"
        yield f"{_API}.STREAM.UPDATE.{stream}"
    for bucket in (settings.nats_kv_chart_specs, settings.nats_kv_assignments, settings.nats_kv_stable_ids):
        yield f"$KV.{bucket}.>"
    yield names.pod("*")
    yield f"{names.root}.verdict.*.*"  # defender history copy --to jetstream
    yield from _samples(names)


def _reading(stream: str) -> Iterable[str]:
    """Single messages, and consumers that the server names itself."""
    yield f"{_API}.STREAM.MSG.GET.{stream}"
    yield f"{_API}.DIRECT.GET.{stream}"
    yield f"{_API}.DIRECT.GET.{stream}.>"
    yield f"{_API}.CONSUMER.CREATE.{stream}"
    yield f"{_API}.CONSUMER.MSG.NEXT.{stream}.*"
    yield f"{_API}.CONSUMER.DELETE.{stream}.*"


def _samples(names: Names) -> Iterable[str]:
    """Where reports go; what an account's mapping makes of the subject is checked as well."""
    yield names.sample("*")
    if names.shards > 1:
        yield f"{names.root}.in.*.*"


def _mapping_probes(names: Names) -> Iterable[str]:
    if names.shards > 1:
        for number in range(MAPPING_PROBES):
            yield names.sample(f"mapping-check-{number}")
            yield f"{names.root}.in.*.mapping-check-{number}"


# --- nats-server's configuration ------------------------------------------------------------------


def configuration(settings: Settings, users: Mapping[Role, Sequence[str]] | None = None) -> str:
    """The users of an account in nats-server's configuration, by default one for each role and called as it
    is. A user whose name is an NKey's public half logs in with it, others with a password that nats-server
    takes from its environment: NATS_PASSWORD_<NAME>."""
    chosen = users if users is not None else {role: [role.value] for role in Role}
    lines = [
        "# The users of a fleet, each with the least permissions. Made by: defender permissions",
        '# Include it in nats-server\'s configuration: authorization { include "permissions.conf" },',
        "# or within the fleet's account, beside jetstream: enabled.",
        "users = [",
    ]
    for role, names in chosen.items():
        for name in names:
            lines += _user(name, permissions(settings, role, name))
    return "\n".join([*lines, "]", ""])


def is_nkey(name: str) -> bool:
    """Whether it is the public half of a user's NKey."""
    return len(name) == 56 and name.startswith("U") and name.isalnum() and name.isupper()


def password_variable(user: str) -> str:
    """The variable of nats-server's environment that has the user's password."""
    return "NATS_PASSWORD_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in user.upper())


def _user(name: str, allowed: Permissions) -> list[str]:
    login = [f"    nkey: {name}"]
    if not is_nkey(name):
        login = [f"    user: {json.dumps(name)}", f"    password: ${password_variable(name)}"]
    responses = f'      allow_responses: {{ max: 1, expires: "{RESPONSE_S_MAX}s" }}'
    return [
        "  {",
        *login,
        "    permissions: {",
        *_allowed("publish", allowed.publish),
        *_allowed("subscribe", allowed.subscribe),
        *([responses] if allowed.responds else []),
        "    }",
        "  }",
    ]


def _allowed(verb: str, subjects: tuple[str, ...]) -> list[str]:
    rules = [f"        {json.dumps(subject)}" for subject in dict.fromkeys(subjects)]
    return [f"      {verb}: {{ allow: [", *rules, "      ] }"]
