"""The log: one line an event, whatever an event carries, and libraries' events like our own."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import log


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger(log.ROOT)
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)
    logging.captureWarnings(False)
    log.identify(stable_id=None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def json_lines(stream: io.StringIO) -> list[dict[str, object]]:
    text = stream.getvalue()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def failure() -> Exception:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        return error


def test_a_line_has_time_level_event_and_the_fields_bound_to_it() -> None:
    stream = io.StringIO()
    log.setup("json", "info", stream)
    parent = log.get("worker").bind(worker=1)
    parent.bind(partition=7).info("partition acquired", epoch=42)
    parent.warning("alone")
    first, second = json_lines(stream)
    age = datetime.now(UTC) - datetime.fromisoformat(str(first.pop("time")))
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert first == {
        "level": "info",
        "event": "partition acquired",
        "logger": "worker",
        "worker": 1,
        "partition": 7,
        "epoch": 42,
    }
    assert second["level"] == "warning"
    assert "partition" not in second


def test_the_time_of_a_json_line_is_utc_wherever_the_pod_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX-9")
    time.tzset()
    try:
        stream = io.StringIO()
        log.setup("json", "info", stream)
        log.get("x").info("event")
    finally:
        monkeypatch.undo()
        time.tzset()
    at = datetime.fromisoformat(str(json_lines(stream)[0]["time"]))
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)


def test_an_exception_is_one_line_with_its_trace() -> None:
    stream = io.StringIO()
    log.setup("json", "info", stream)
    log.get("worker").error("batch failed", exc=failure())
    (line,) = json_lines(stream)
    assert line["error"] == "ValueError: two\nlines"
    assert "in failure" in str(line["trace"])
    assert "exc" not in line


def test_what_an_event_loop_reports_without_an_exception_is_a_line_too() -> None:
    for style in ("json", "console"):
        stream = io.StringIO()
        log.setup(style, "info", stream=stream)
        loop = asyncio.new_event_loop()
        loop.call_exception_handler({"message": "Task was destroyed but it is pending!"})
        loop.close()
        assert "Task was destroyed" in stream.getvalue()


def test_an_exception_on_a_terminal_is_one_line_with_its_place() -> None:
    stream = io.StringIO()
    log.setup("console", "info", stream)
    log.get("worker").error("batch failed", exc=failure(), chamber="\x1b[2J")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: two\\nlines (test_log.py:" in line
    assert "\x1b" not in line


nasty = st.text('a =":,{\\\n\r\t\x00\x1b\x85\u2028\ud800é\U0001f600', max_size=10)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | nasty | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(nasty | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(
    event=nasty,
    fields=st.dictionaries(st.sampled_from(["time", "level", "event", "a", "b"]), anything),
)
def test_whatever_is_logged_a_line_is_one_json_object(event: str, fields: dict[str, object]) -> None:
    stream = io.StringIO()
    log.setup("json", "debug", stream)
    log.get("x").debug(event, **fields)
    (line,) = json_lines(stream)
    assert line["level"] == "debug"
    assert line["event"] == event.strip()


@given(event=nasty, value=anything)
def test_whatever_is_logged_a_terminal_gets_one_printable_line(event: str, value: object) -> None:
    stream = io.StringIO()
    log.setup("console", "debug", stream)
    log.get("x").debug(event, value=value)
    text = stream.getvalue()
    assert text.endswith("\n")
    assert text[:-1].isprintable()


def test_a_field_named_like_a_part_of_the_line_does_not_overwrite_it() -> None:
    stream = io.StringIO()
    log.setup("json", "info", stream)
    log.get("x").info("real", event="other", level="other")
    (line,) = json_lines(stream)
    assert (line["event"], line["level"], line["event_"], line["level_"]) == (
        "real",
        "info",
        "other",
        "other",
    )


def test_an_identity_is_on_every_line_of_the_process_until_it_is_taken_off() -> None:
    stream = io.StringIO()
    log.setup("json", "info", stream)
    log.identify(stable_id="defender-3")
    log.get("x").info("mine")
    logging.getLogger("nats.aio").warning("theirs")
    log.identify(stable_id=None)
    log.get("x").info("after")
    mine, theirs, after = json_lines(stream)
    assert mine["stable_id"] == theirs["stable_id"] == "defender-3"
    assert theirs["logger"] == "nats.aio"
    assert "stable_id" not in after


def test_only_events_of_the_level_or_above_and_only_warnings_of_libraries_are_shown() -> None:
    stream = io.StringIO()
    log.setup("json", "info", stream)
    log.get("x").debug("no")
    log.get("x").info("yes")
    logging.getLogger("lib").info("no")
    logging.getLogger("lib").warning("yes %d", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.setup("json", "info", stream)
        warnings.warn("deprecated", stacklevel=1)
    assert [line["event"] for line in json_lines(stream)][:2] == ["yes", "yes 1"]
    assert "deprecated" in str(json_lines(stream)[2]["event"])


def test_a_terminal_gets_colours_unless_it_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    log.setup("console", "info", coloured)
    log.get("x").warning("event")
    monkeypatch.setenv("NO_COLOR", "1")
    log.setup("console", "info", plain)
    log.get("x").warning("event")
    assert "\x1b[33m" in coloured.getvalue()
    assert "\x1b" not in plain.getvalue()
