"""``defender permissions``: what each kind of user must be let to do at the NATS server, for its own file.

It follows the settings: other names of streams and buckets, or more partitions, make other permissions.
"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from runtime import permissions as model
from runtime.cli import terminal
from runtime.cli.command import Json
from runtime.errors import InputError
from runtime.permissions import Role

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def permissions(
    user: Annotated[
        list[str] | None,
        typer.Option(
            "--user",
            help="ROLE=NAME: one more user; NAME may be an NKey's public half. By default one a role.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Print the users of nats-server's configuration: each role with the least that its job takes."""
    settings = terminal.settings()
    users = _users(user or [f"{role}={role}" for role in Role])
    if not json:
        print(model.configuration(settings, users), end="")
        return
    rows = []
    for role, names in users.items():
        for name in names:
            allowed = model.permissions(settings, role, name)
            publish, subscribe = dict.fromkeys(allowed.publish), dict.fromkeys(allowed.subscribe)
            rows.append(
                {
                    "role": role,
                    "user": name,
                    "publish": list(publish),
                    "subscribe": list(subscribe),
                    "allow_responses": allowed.responds,
                }
            )
    terminal.print_json(rows)


def _users(given: list[str]) -> dict[Role, list[str]]:
    """Raises InputError."""
    found: dict[Role, list[str]] = {}
    for one in given:
        role, _, name = one.partition("=")
        if role not in set(Role) or not _NAME.fullmatch(name):
            roles = ", ".join(Role)
            raise InputError(
                f"--user {one!r}: give ROLE=NAME, ROLE one of {roles}, NAME of letters, digits, - and _"
            )
        found.setdefault(Role(role), []).append(name)
    return found
