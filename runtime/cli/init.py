"""``defender init``: what a fleet needs before its first pod, made or checked.

Streams and buckets in NATS, which defenders also make for themselves; with HISTORY=cassandra the keyspace and
the tables, which they do not: many pods that start at once must not change a schema at the same time.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import typer
from msgspec import Struct

from runtime import resources
from runtime.cli import terminal
from runtime.cli.command import Json
from runtime.config import History, Settings
from runtime.connection import Connection
from runtime.errors import ResourceDiffers, SettingsError
from runtime.jetstream import NotFound

INCOMPLETE: Final = 78
"""Exit code: something is missing or differs."""
State = Literal["made", "changed", "there", "missing", "differs"]
_STYLES: Final[dict[State, str]] = {"made": "green", "changed": "green", "missing": "red", "differs": "red"}


class Part(Struct, frozen=True):
    """One stream, bucket, keyspace or table. *notes*: what differs, was changed or may be changed by hand."""

    store: str
    name: str
    state: State
    notes: list[str] = []


def init(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 78 if not all is there.")
    ] = False,
    json: Json = False,
) -> None:
    """Make what a fleet needs before its first pod: streams, buckets, Cassandra's keyspace and tables."""
    settings = terminal.settings()
    parts = terminal.run(_nats(settings, check))
    if not json:
        _print(f"NATS {', '.join(map(_bare, settings.servers))}", parts)
    if settings.history is History.CASSANDRA:
        history = _cassandra(settings, check)
        parts += history
        if not json:
            _print(f"Cassandra {settings.cassandra_contact_points}", history)
    lacking = [part for part in parts if part.state in ("missing", "differs")]
    if json:
        terminal.print_json({"complete": not lacking, "parts": parts})
    elif lacking:
        remedy = "run: defender init" if all(part.state == "missing" for part in lacking) else "see above"
        terminal.stderr().print(
            f"{len(lacking)} of {len(parts)} are missing or differ: {remedy}", style="red"
        )
    else:
        terminal.stdout().print(f"all {len(parts)} are there")
    if lacking:
        raise typer.Exit(INCOMPLETE)


def _print(store: str, parts: list[Part]) -> None:
    console = terminal.stdout()
    console.print(store, style="bold")
    for part in parts:
        console.print(f"  {part.state:<8} {part.name}", style=_STYLES.get(part.state))
        for note in part.notes:
            console.print(f"           {terminal.clean(note)}")


def _bare(url: str) -> str:
    """A server's URL without its login."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


async def _nats(settings: Settings, check: bool) -> list[Part]:
    async with terminal.session(settings) as connection:
        before = await _found(connection, settings)
        lacks = any(part.state == "missing" for part in before)
        differs = any(part.state == "differs" for part in before)
        if (check and lacks) or (differs and not lacks):
            return before  # `ensure` would make them, or only say again what differs
        try:
            await resources.ensure(connection, settings)
        except ResourceDiffers:  # those that were missing are made
            if not differs:
                raise
        after = await _found(connection, settings)
    was = {part.name: part.state for part in before}
    made = [part for part in after if was[part.name] == "missing" and part.state == "there"]
    return [Part(p.store, p.name, "made", p.notes) if p in made else p for p in after]


async def _found(connection: Connection, settings: Settings) -> list[Part]:
    parts = []
    for want in resources.wanted(settings):
        try:
            answer = await connection.api(f"STREAM.INFO.{want.name}", timeout_s=settings.request_timeout_s)
        except NotFound:
            parts.append(Part("nats", want.title, "missing"))
            continue
        wrong = [
            text.removeprefix(f"{want.title}: ") for text in resources.differences(answer["config"], want)
        ]
        tuned = [f"{key} is {value}, tuned" for key, value in resources.tuned(answer["config"], want).items()]
        parts.append(Part("nats", want.title, "differs" if wrong else "there", wrong or tuned))
    return parts


def _cassandra(settings: Settings, check: bool) -> list[Part]:
    try:
        from runtime.history import cluster, schema
    except ImportError as error:
        problem = f"'cassandra' needs its driver ({error}): pip install 'tfdc-defender[cassandra]'"
        raise SettingsError("HISTORY", problem) from error
    opened, session = cluster.open_cluster(settings, keyspace=False)
    try:
        before = found = schema.read(session, settings)
        changes = [told for told, _ in schema.adjustments(before, settings)]
        wrong = schema.differences(before, settings)
        done = False
        if not check and not wrong:
            schema.create(session, settings)
            found, done = schema.read(session, settings), True
        notes = schema.remarks(session, found, settings)
    except Exception as error:
        raise cluster.explained(error, settings) from error
    finally:
        opened.shutdown()
    was, parts = schema.parts(before, settings), []
    for name, is_there in schema.parts(found, settings).items():
        parts.append(Part("cassandra", name, _state(was[name], is_there)))
    if wrong:
        parts.append(Part("cassandra", "what is there", "differs", wrong))
    if changes:
        parts.append(Part("cassandra", "settings of the tables", "changed" if done else "differs", changes))
    if notes:
        parts[0] = Part("cassandra", parts[0].name, parts[0].state, notes)
    return parts


def _state(was_there: bool, is_there: bool) -> State:
    if not is_there:
        return "missing"
    return "there" if was_there else "made"
