"""The keyspace and the tables of the history in Cassandra: made by ``defender init``, checked by each worker.

    meta      'schema' -> VERSION, 'partitions' -> PARTITIONS of the fleet
    chambers  the newest block of each chamber, by partition
    reports   a row a report, BLOCK_REPORTS of them a partition of the table, newest first; expires

`create` may run again at any time, and by several at once: it makes what is missing, tunes what follows a
setting, and never touches a row. A keyspace whose replication differs stays as it is, for its rows would
have to be moved: the statement to run is told.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from cassandra.cluster import Session

from runtime.config import Settings
from runtime.errors import HistoryDiffers, HistoryUnreachable
from runtime.history.cluster import datacenters, explained

VERSION: Final = 1
BLOCK_REPORTS: Final = 512
DDL_S_MAX: Final = 30.0
"""A change of the schema takes all nodes, and longer than a row."""
WINDOWS_A_TTL: Final = 30
META_FLUSH_MS: Final = 1000
"""From a row of ``meta`` to its place on disk. A node syncs its commit log every 10 s by default: one of a
single replica that was killed sooner came back without the version, and no worker would begin."""
_STRATEGY: Final = "TimeWindowCompactionStrategy"

COLUMNS: Final[dict[str, dict[str, str]]] = {
    "meta": {"key": "text", "value": "text"},
    "chambers": {"partition": "int", "chamber": "text", "block": "int"},
    "reports": {
        "chamber": "text",
        "block": "int",
        "seq": "bigint",
        "layout": "tinyint",
        "ordinal": "bigint",
        "epoch": "bigint",
        "at_ns": "bigint",
        "run": "text",
        "reset": "text",
        "charts": "blob",
        "samples": "blob",
        "carried": "blob",
        "shown": "blob",
    },
}
_KEYS: Final = {
    "meta": "key",
    "chambers": "(partition), chamber",
    "reports": "(chamber, block), seq",
}


class Found(NamedTuple):
    """What the cluster has. *replication* is None without a keyspace; *columns* by table, name and type."""

    replication: dict[str, str] | None
    columns: dict[str, dict[str, str]]
    ttl_s: int
    compaction: dict[str, str]
    meta: dict[str, str]


def compaction(settings: Settings) -> dict[str, str]:
    """Of ``reports``: about 30 windows live at a time, and one whose rows have expired is dropped whole."""
    hours = max(1, round(settings.history_ttl_s / 3600 / WINDOWS_A_TTL))
    return {"class": _STRATEGY, "compaction_window_unit": "HOURS", "compaction_window_size": str(hours)}


def statements(settings: Settings) -> dict[str, str]:
    """The CQL that makes the keyspace (key "") and each table."""
    keyspace = settings.cassandra_keyspace
    made = {"": f"CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {_replication(settings)}"}
    for table, columns in COLUMNS.items():
        listed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        made[table] = (
            f"CREATE TABLE IF NOT EXISTS {keyspace}.{table} ({listed}, PRIMARY KEY ({_KEYS[table]}))"
        )
    made["reports"] += (
        f" WITH CLUSTERING ORDER BY (seq DESC) AND default_time_to_live = {settings.history_ttl_s}"
        f" AND compaction = {compaction(settings)}"
    )
    made["meta"] += f" WITH memtable_flush_period_in_ms = {META_FLUSH_MS}"
    return made


def _replication(settings: Settings) -> dict[str, str]:
    counts = {name: str(count) for name, count in settings.replication.items()}
    return {"class": "NetworkTopologyStrategy", **counts}


def create(session: Session, settings: Settings) -> list[str]:
    """Makes what is missing and says what it did and what a person may want to do; blocks.

    *session* is one without a keyspace. Raises HistoryDiffers when what is there cannot be used, and what
    `runtime.history.cluster.explained` tells.
    """
    try:
        return _create(session, settings)
    except Exception as error:
        raise explained(error, settings) from error


def _create(session: Session, settings: Settings) -> list[str]:
    found = read(session, settings)
    wrong = differences(found, settings)
    if wrong:
        raise HistoryDiffers(" | ".join(wrong))
    done, keyspace = [], settings.cassandra_keyspace
    if found.replication is None:
        _check_datacenters(session, settings)
    for table, statement in statements(settings).items():
        if found.replication is None if not table else table not in found.columns:
            _alter(session, statement, settings)
            done.append(f"made the table {keyspace}.{table}" if table else f"made the keyspace {keyspace}")
    for key, value in _meta(settings).items():
        if key not in found.meta:
            insert = f"INSERT INTO {keyspace}.meta (key, value) VALUES (%s, %s) IF NOT EXISTS"
            session.execute(insert, (key, value), timeout=DDL_S_MAX)
    for told, statement in adjustments(read(session, settings), settings):
        _alter(session, statement, settings)
        done.append(told)
    check(session, settings)  # another may have made it at the same time, with other settings
    return done


def check(session: Session, settings: Settings) -> None:
    """Raises HistoryDiffers unless keyspace, tables, version and PARTITIONS are what we need; blocks."""
    try:
        found = read(session, settings)
    except Exception as error:
        raise explained(error, settings) from error
    wrong = [*missing(found, settings), *differences(found, settings)]
    if wrong:
        raise HistoryDiffers(" | ".join(wrong))


def read(session: Session, settings: Settings) -> Found:
    """What is there. Raises the driver's errors."""
    keyspace = settings.cassandra_keyspace

    def rows(what: str, source: str) -> list[tuple[Any, ...]]:
        query = f"SELECT {what} FROM {source}"
        if source.startswith("system_schema."):
            return list(session.execute(f"{query} WHERE keyspace_name = %s", (keyspace,)))
        return list(session.execute(query))

    kept = rows("replication", "system_schema.keyspaces")
    tuned = {
        name: (ttl_s, dict(how))
        for name, ttl_s, how in rows("table_name, default_time_to_live, compaction", "system_schema.tables")
    }
    columns: dict[str, dict[str, str]] = {name: {} for name in tuned if name in COLUMNS}
    for table, column, kind in rows("table_name, column_name, type", "system_schema.columns"):
        if table in columns:
            columns[table][column] = kind
    ttl_s, how = tuned.get("reports", (0, {}))
    has_meta = columns.get("meta") == COLUMNS["meta"]
    meta = dict(rows("key, value", f"{keyspace}.meta")) if has_meta else {}
    return Found(dict(kept[0][0]) if kept else None, columns, ttl_s or 0, how, meta)


def parts(found: Found, settings: Settings) -> dict[str, bool]:
    """What there must be, and whether it is."""
    keyspace = settings.cassandra_keyspace
    tables = {f"table {keyspace}.{table}": table in found.columns for table in COLUMNS}
    has_meta = all(key in found.meta for key in _meta(settings))
    return {
        f"keyspace {keyspace}": found.replication is not None,
        **tables,
        "version and PARTITIONS": has_meta,
    }


def missing(found: Found, settings: Settings) -> list[str]:
    """What is not there, in one line, or none."""
    keyspace = settings.cassandra_keyspace
    if found.replication is None:
        return [f"no keyspace {keyspace!r} in Cassandra: run: defender init, or correct CASSANDRA_KEYSPACE"]
    lacking = [name for name, is_there in parts(found, settings).items() if not is_there]
    return [f"Cassandra lacks in {keyspace}: {', '.join(lacking)}: run: defender init"] if lacking else []


def differences(found: Found, settings: Settings) -> list[str]:
    """What is there and cannot be used, a line each."""
    keyspace, wrong = settings.cassandra_keyspace, []
    other = "set CASSANDRA_KEYSPACE to another name"
    for table, columns in found.columns.items():
        odd = sorted(set(COLUMNS[table].items()) ^ set(columns.items()))
        # Columns that we do not know are of a later version, which says in meta whether it suits us.
        if odd and any(columns.get(name) != kind for name, kind in COLUMNS[table].items()):
            names = ", ".join(dict.fromkeys(name for name, _ in odd))
            wrong.append(f"the table {keyspace}.{table} is not a defender's (columns {names}): {other}")
    version, partitions = found.meta.get("schema", str(VERSION)), found.meta.get("partitions")
    if version != str(VERSION):
        is_newer = version.isdecimal() and int(version) > VERSION
        remedy = "run a newer defender" if is_newer else f"copy it into a keyspace of this version, {other}"
        wrong.append(f"the schema of {keyspace} has version {version}, this defender has {VERSION}: {remedy}")
    if partitions not in (None, str(settings.partitions)):
        wrong.append(
            f"PARTITIONS is {settings.partitions}, and {keyspace} was made for {partitions}: set it to that, "
            f"or {other}"
        )
    return wrong


def adjustments(found: Found, settings: Settings) -> list[tuple[str, str]]:
    """What follows a setting that was changed: what is done, and its CQL."""
    if "reports" not in found.columns:
        return []
    done, table = [], f"{settings.cassandra_keyspace}.reports"
    if found.ttl_s != settings.history_ttl_s:
        told = f"{table} keeps new rows {settings.history_ttl_s} s (HISTORY_TTL_S), before {found.ttl_s} s"
        done.append((told, f"ALTER TABLE {table} WITH default_time_to_live = {settings.history_ttl_s}"))
    wanted = compaction(settings)
    has = {**found.compaction, "class": found.compaction.get("class", "").rpartition(".")[2]}
    if any(has.get(key) != value for key, value in wanted.items()):
        told = f"{table} is compacted by {wanted['compaction_window_size']} h"
        done.append((told, f"ALTER TABLE {table} WITH compaction = {wanted}"))
    return done


def remarks(session: Session, found: Found, settings: Settings) -> list[str]:
    """What a person may want to change, and how; nothing that keeps a defender from working."""
    told, keyspace = [], settings.cassandra_keyspace
    has = {key: value for key, value in (found.replication or {}).items() if key != "class"}
    wanted = {name: str(count) for name, count in settings.replication.items()}
    strategy = (found.replication or {}).get("class", "").rpartition(".")[2]
    if found.replication is not None and (has != wanted or strategy != "NetworkTopologyStrategy"):
        shown = ",".join(f"{name}:{count}" for name, count in sorted(has.items()))
        told.append(
            f"{keyspace} is replicated by {strategy} {shown}, CASSANDRA_REPLICATION is "
            f"{settings.cassandra_replication}; to change it: ALTER KEYSPACE {keyspace} WITH replication = "
            f"{_replication(settings)}; then on every node: nodetool repair --full {keyspace}"
        )
    for name, nodes in datacenters(session.cluster).items():
        if int(wanted.get(name, 0)) > nodes:
            told.append(
                f"CASSANDRA_REPLICATION asks for {wanted[name]} replicas in {name}, it has {nodes} nodes"
            )
    return told


def _meta(settings: Settings) -> dict[str, str]:
    """The version comes last: with it the schema is whole."""
    return {"partitions": str(settings.partitions), "schema": str(VERSION)}


def _check_datacenters(session: Session, settings: Settings) -> None:
    there = datacenters(session.cluster)
    unknown = [name for name in settings.replication if name not in there]
    if unknown:
        raise HistoryDiffers(
            f"CASSANDRA_REPLICATION: {settings.cassandra_replication!r} names {', '.join(unknown)}, and the "
            f"cluster's datacenters are {', '.join(there)}: correct it"
        )
    for name, count in settings.replication.items():
        if count > there[name]:
            raise HistoryDiffers(
                f"CASSANDRA_REPLICATION: {settings.cassandra_replication!r} asks for {count} replicas in "
                f"{name}, and it has {there[name]} nodes: ask for fewer, or add nodes first"
            )


def _alter(session: Session, statement: str, settings: Settings) -> None:
    """One change of the schema, which all nodes know when this returns."""
    result = session.execute(statement, timeout=DDL_S_MAX)
    if not result.response_future.is_schema_agreed:
        waited_s = session.cluster.max_schema_agreement_wait
        raise HistoryUnreachable(
            f"the nodes of Cassandra do not agree on the schema after {waited_s} s "
            f"({statement.split(' (')[0]}): see nodetool describecluster, then run defender init again"
        )
