"""A run, or several side by side, as one HTML file that needs nothing from elsewhere and runs no script.

The run itself is in the page, too: ``<script type="application/json" id="result">``. All names come from
outside and are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Final

import msgspec

from bench.lab import page_plots as plots
from bench.lab import words
from bench.lab.page_ownership import HOVERS_MAX, UNOWNED_MS, colours, ownership
from bench.lab.page_plots import NARROW, Size
from bench.lab.page_style import STYLE
from bench.lab.result import PodUse, Result
from bench.lab.table import COMPARED, compared
from bench.lab.words import number

PODS_OPEN_MAX: Final = 12
"""A longer table of pods is folded."""
LINES_MAX: Final = 60
"""Notes or problems on the page; all are in the JSON."""
JSON_MAX: Final = 1_500_000
"""Characters of JSON in a page; a longer one leaves the stretches of ownership out and says so."""
_HALF: Final = Size(560)


def written(results: Result | Sequence[Result]) -> str:
    """The page of one run, or the comparison of several. Raises ValueError for none."""
    several = [results] if isinstance(results, Result) else list(results)
    if not several:
        raise ValueError("a page is of one result at least")
    if len(several) == 1:
        title, body = f"{several[0].scenario}, {several[0].identity}", _one(several[0])
    else:
        title, body = "comparison", _compared(several)
    return "".join(
        [
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>Defender lab: {escape(title)}</title><style>{STYLE}</style></head><body><main>",
            *body,
            _json(several),
            "</main></body></html>\n",
        ]
    )


def _json(results: Sequence[Result]) -> str:
    """The results for machines. ``<`` is written as an escape, so that no name can end the script."""
    left_out = ""
    coded = msgspec.json.encode(results[0] if len(results) == 1 else results).decode()
    if len(coded) > JSON_MAX:
        shorter = [msgspec.structs.replace(result, owned=[]) for result in results]
        coded = msgspec.json.encode(shorter[0] if len(shorter) == 1 else shorter).decode()
        left_out = ", but for the stretches of ownership, which would make it too long"
    for sign, code in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        coded = coded.replace(sign, code)
    told = f"The figures are in this page as JSON{left_out}: the element with the id “result”."
    return f"<p class='soft'>{told}</p><script type='application/json' id='result'>{coded}</script>"


# --- one run --------------------------------------------------------------------------------------


def _one(result: Result) -> Iterator[str]:
    ends = plots.bounds([result])
    yield _header(result)
    yield _warnings(result)
    yield f"<div class='tiles'>{''.join(_tiles(result))}</div>"
    yield "<div class='two'>"
    yield _promises(result)
    yield _figure(
        f"Unattended gaps: {words.count(len(result.gaps_ms), 'change')} of a partition's pod",
        plots.gaps(result, ends, _HALF),
        (),
        "Share of the changes after which no report waited longer than this.",
    )
    yield "</div>"
    yield "<h2>Over time</h2>"
    yield from _over_time(result, ends)
    yield "<h2>The run</h2>"
    yield f"<div class='two'>{_done(result)}{_counts(result)}</div>"
    yield _pods(result)
    yield _listed("What to know when reading this", result.notes, "note")


def _header(result: Result) -> str:
    good = words.is_good(result)
    broken = f" · <b>{escape(result.broken)}</b> put in on purpose" if result.broken else ""
    return (
        f"<header><p class='eyebrow'>Defender lab · <b>{escape(result.scenario)}</b> · identity "
        f"<b>{escape(result.identity)}</b>{broken} {_pill(good, 'as promised', 'not as promised')}</p>"
        f"<h1>{escape(words.verdict(result))}</h1>"
        f"<p class='sub'>{escape(words.fleet(result))}. {escape(words.date(result.begun_ns))}, on "
        f"{escape(words.machine(result))}.</p></header>"
    )


def _pill(good: bool, if_good: str, if_bad: str) -> str:
    return (
        f"<span class='pill good'>✓ {if_good}</span>" if good else f"<span class='pill bad'>✗ {if_bad}</span>"
    )


def _table(heads: str, rows: Iterable[str]) -> str:
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _warnings(result: Result) -> str:
    found = ""
    if not result.is_whole:
        found += _listed(
            "The run broke off", ["What was seen until then is here; the figures are partial."], "fault"
        )
    return found + _listed("Problems", result.problems, "fault")


def _listed(title: str, lines: Sequence[str], kind: str) -> str:
    if not lines:
        return ""
    shown = [f"<li>{escape(line)}</li>" for line in lines[:LINES_MAX]]
    if len(lines) > LINES_MAX:
        shown.append(f"<li>and {len(lines) - LINES_MAX:,} more in the JSON</li>")
    return f"<div class='card {kind}'><h3>{title}</h3><ul>{''.join(shown)}</ul></div>"


def _tiles(result: Result) -> Iterator[str]:
    def tile(name: str, value: str, more: str, is_bad: bool = False) -> str:
        kind = "tile bad" if is_bad else "tile"
        return (
            f"<div class='{kind}'><div class='name'>{name}</div><div class='value'>{value}</div>"
            f"<div class='more'>{more}</div></div>"
        )

    of = f"of {number(result.reports)} reports"
    yield tile("Lost", number(result.lost), of, result.lost != 0)
    yield tile(
        "Doubled",
        number(result.doubled),
        f"of {number(result.verdicts)} verdicts",
        result.doubled != 0,
    )
    others = f"{number(result.out_of_order)} out of order, {number(result.stale)} of an old epoch"
    yield tile("Wrong", number(result.wrong), others, any((result.wrong, result.out_of_order, result.stale)))
    moved = (
        f"{number(result.partitions_must_move)} must move; {number(result.partitions_taken_over)} taken over"
    )
    yield tile("Reassigned", number(result.partitions_reassigned), moved)
    longest = f"p50 {words.ms(result.gap_ms_p50)}, longest {words.ms(result.gap_ms_max)}"
    yield tile("Unattended gap p99", words.ms(result.gap_ms_p99), longest)
    longest = f"p50 {words.ms(result.latency_ms_p50)}, longest {words.ms(result.latency_ms_max)}"
    yield tile("Verdict latency p99", words.ms(result.latency_ms_p99), longest)
    recovery = f"slowest pod to its ID {words.s(result.identity_recovery_s_max)}"
    yield tile("Duration of the steps", words.s(result.duration_s), recovery)
    if result.rate_sustained:
        yield tile("Sustained", number(result.rate_sustained), "reports/s without growing lag")
    else:
        unowned = f"longest without a live owner {words.ms(result.unowned_max_ms)}"
        yield tile("Doubly owned", number(result.doubly_owned), unowned, result.doubly_owned != 0)


def _promises(result: Result) -> str:
    if not result.promises:
        return (
            "<div class='card'><h3>Promises</h3><p class='soft'>The budget has none for this run.</p></div>"
        )
    rows = [
        f"<tr><td>{escape(words.title(p.name))}</td><td class='n'>{words.told(p.name, p.limit)}</td>"
        f"<td class='n'>{words.told(p.name, p.seen)}</td>"
        f"<td class='n'>{_pill(p.met, 'met', 'broken')}</td></tr>"
        for p in result.promises
    ]
    heads = "<th>Promise</th><th class='n'>at most</th><th class='n'>seen</th><th></th>"
    return f"<div class='card'>{_table(heads, rows)}</div>"


def _figure(title: str, drawn: str, keys: Iterable[tuple[str, str, str]], told: str = "") -> str:
    """Keys are (words, colour variable, "" for a line or "box")."""
    legend = "".join(
        f"<span class='key'><i class='{shape}' style='--c: {colour}'></i>{name}</span>"
        for name, colour, shape in keys
    )
    below = f"<p class='sub'>{told}</p>" if told else ""
    return f"<figure class='card'><figcaption><h3>{title}</h3>{legend}</figcaption>{drawn}{below}</figure>"


_LATENCY_KEYS: Final = (
    ("p50", "var(--deep)", ""),
    ("p99", "var(--blue)", ""),
    ("longest", "var(--amber)", ""),
)
_OWNERSHIP_TOLD: Final = (
    "A row is a partition, a colour a stable ID, and rows stand by their first owner, named at the left. "
    "Where the shade changes, another pod took the partition over; where the colour does, it was reassigned."
)


def _unowned_key() -> tuple[str, str, str]:
    return (f"no owner for {UNOWNED_MS:.0f} ms or longer", "#e5142b", "box")


def _over_time(result: Result, ends: plots.Bounds) -> Iterator[str]:
    yield _figure("Verdict latency, each second", plots.latency(result, ends), _LATENCY_KEYS)
    picture = ownership(result, ends, colours([result]))
    keys = (_unowned_key(), ("two owners", "var(--ink)", "box"))
    yield _figure("Ownership of the partitions", picture, keys, _OWNERSHIP_TOLD)
    yield _figure(
        "Throughput, each second",
        plots.throughput(result, ends),
        (("reports stored", "var(--faint)", ""), ("verdicts stored", "var(--blue)", "")),
    )
    yield _figure(
        "CPU",
        plots.cpu(result, ends),
        (
            ("pods", "var(--blue)", "box"),
            ("lab: producers, observer", "var(--violet)", "box"),
            ("server", "var(--teal)", "box"),
        ),
    )
    yield _figure(
        "Pods",
        plots.pods(result, ends),
        (("running", "var(--faint)", ""), ("ready", "var(--teal)", "")),
    )


def _done(result: Result) -> str:
    begun = words.begun_ns(result)
    rows = [
        f"<tr><td class='n'>{(mark.begun_ns - begun) / 1e9:.1f} s</td><td>{escape(mark.what)}</td>"
        f"<td class='n'>{words.lasted(mark)}</td></tr>"
        for mark in result.marks
    ] or ["<tr><td></td><td>nothing</td><td></td></tr>"]
    heads = "<th class='n'>at</th><th>What was done to the fleet</th><th class='n'>took</th>"
    return f"<div class='card'>{_table(heads, rows)}</div>"


def _counts(result: Result) -> str:
    late = f"{words.ms(result.producer_late_ms_max)} at most"
    figures = (
        ("Reports, verdicts", f"{number(result.reports)}, {number(result.verdicts)}"),
        ("Samples judged", number(result.samples)),
        ("Reports rejected", number(result.rejected)),
        (
            "Alarms lost, doubled",
            f"{number(result.alarms_lost)}, {number(result.alarms_doubled)}",
        ),
        ("Of which nothing can be said", number(result.unknown)),
        ("Containers restarted", number(result.pods_restarted)),
        ("Producers behind their schedule", late),
        ("Observer", words.told("observer_cores", result.observer_cores)),
    )
    rows = [f"<tr><td>{name}</td><td class='n'>{value}</td></tr>" for name, value in figures]
    heads = "<th>Counts, and the lab's own part</th><th></th>"
    return f"<div class='card'>{_table(heads, rows)}</div>"


def _pods(result: Result) -> str:
    if not result.pods:
        return ""
    begun = words.begun_ns(result)
    most_cpu, most_pss = (
        max(max(values), 1e-9) for values in zip(*((p.cpu_s, p.pss_mb) for p in result.pods), strict=True)
    )
    rows = [_pod(pod, begun, most_cpu, most_pss) for pod in result.pods]
    heads = (
        "<th>Pod</th><th>stable ID</th><th class='n'>from</th><th class='n'>to</th><th class='n'>exit</th>"
    )
    heads += "<th class='n'>restarts</th><th class='n'>CPU</th><th class='n'>PSS at most</th>"
    is_open = " open" if len(result.pods) <= PODS_OPEN_MAX else ""
    return (
        f"<details class='card'{is_open}><summary>{words.count(len(result.pods), 'pod')}</summary>"
        f"{_table(heads, rows)}</details>"
    )


def _pod(pod: PodUse, begun_ns: int, most_cpu: float, most_pss: float) -> str:
    def bar(share: float) -> str:
        return f"<span class='track'><i class='bar' style='width: {64 * share:.0f}px'></i></span>"

    ended = f"{(pod.ended_ns - begun_ns) / 1e9:.1f} s" if pod.ended_ns else "–"
    exit_code = "–" if pod.exit_code is None else str(pod.exit_code)
    return (
        f"<tr><td>{escape(pod.pod)}</td><td>{escape(pod.stable_id) or '–'}</td>"
        f"<td class='n'>{(pod.begun_ns - begun_ns) / 1e9:.1f} s</td><td class='n'>{ended}</td>"
        f"<td class='n'>{exit_code}</td><td class='n'>{pod.restarts}</td>"
        f"<td class='n'>{pod.cpu_s:.1f} s{bar(pod.cpu_s / most_cpu)}</td>"
        f"<td class='n'>{pod.pss_mb:.0f} MB{bar(pod.pss_mb / most_pss)}</td></tr>"
    )


# --- several runs ---------------------------------------------------------------------------------


def _compared(results: Sequence[Result]) -> Iterator[str]:
    scenarios = [(name, list(runs)) for name, runs in groupby(results, lambda result: result.scenario)]
    lost, doubled = (sum(getattr(result, field) for result in results) for field in ("lost", "doubled"))
    reports = sum(result.reports for result in results)
    good = sum(words.is_good(result) for result in results)
    fleets = words.sizes(results)
    yield (
        f"<header><p class='eyebrow'>Defender lab · comparison of {words.count(len(results), 'run')} "
        f"{_pill(good == len(results), 'all as promised', f'{len(results) - good} not as promised')}</p>"
        f"<h1>{lost:,} of {reports:,} reports lost, {doubled:,} doubled; {good} of "
        f"{words.count(len(results), 'run')} as promised</h1>"
        f"<p class='sub'>{escape(fleets)}. On {escape(words.caption(results))}.</p></header>"
    )
    yield _comparison(scenarios)
    shades = colours(results)
    hovers = HOVERS_MAX // len(results)
    for name, runs in scenarios:
        yield f"<h2>{escape(name)}</h2>"
        yield from _side_by_side(runs, shades, hovers)
    yield _listed(
        "What to know when reading this",
        list(dict.fromkeys(note for result in results for note in result.notes)),
        "note",
    )


def _comparison(scenarios: Sequence[tuple[str, Sequence[Result]]]) -> str:
    heads = "".join(
        f"<th{'' if k < 2 else ' class=n'}>{name}</th>" for k, name in enumerate((*COMPARED, "promises"))
    )
    faults = (COMPARED.index("lost"), COMPARED.index("doubled"))
    bodies = []
    for _, runs in scenarios:
        rows = []
        for place, result in enumerate(runs):
            cells = []
            for k, value in enumerate(compared(result)):
                kind = "fault n" if k in faults and value != "0" else "n" if k > 1 else "name"
                shown = "" if k == 0 and place and result.is_whole else escape(value)
                cells.append(f"<td class='{kind}'>{shown}</td>")
            rows.append(f"<tr>{''.join(cells)}<td class='n'>{_kept(result)}</td></tr>")
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    return f"<div class='card many'><table><thead><tr>{heads}</tr></thead>{''.join(bodies)}</table></div>"


def _kept(result: Result) -> str:
    met = sum(promise.met for promise in result.promises)
    every = len(result.promises)
    return _pill(words.is_good(result), f"{met}/{every}", f"{met}/{every}") if every else "–"


def _side_by_side(runs: Sequence[Result], shades: dict[str, str], hovers: int) -> Iterator[str]:
    ends = plots.bounds(runs)

    def row(drawn: Iterable[tuple[Result, str, str]]) -> str:
        cells = [
            f"<div><h4>{escape(result.identity)}</h4><p class='sub'>{told}</p>{svg}</div>"
            for result, told, svg in drawn
        ]
        return f"<div class='three' style='--n: {len(runs)}'>{''.join(cells)}</div>"

    latencies = row(
        (
            r,
            f"p99 {words.ms(r.latency_ms_p99)}, longest {words.ms(r.latency_ms_max)}",
            plots.latency(r, ends, NARROW),
        )
        for r in runs
    )
    yield _figure("Verdict latency, each second", latencies, _LATENCY_KEYS)
    pictures = row(
        (
            r,
            f"{number(r.partitions_reassigned)} reassigned, {number(r.partitions_taken_over)} taken over",
            ownership(r, ends, shades, NARROW, hovers),
        )
        for r in runs
    )
    yield _figure("Ownership of the partitions", pictures, (_unowned_key(),), _OWNERSHIP_TOLD)
    waits = row(
        (r, f"{words.count(len(r.gaps_ms), 'change')} of a partition's pod", plots.gaps(r, ends, NARROW))
        for r in runs
    )
    yield _figure("Unattended gaps", waits, ())
    for result in runs:
        if result.problems:
            yield _listed(f"Problems: {escape(result.identity)}", result.problems, "fault")
