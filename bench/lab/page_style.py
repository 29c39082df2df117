"""The style sheet of the page: light, dark by the reader's preference, and print."""

from __future__ import annotations

from typing import Final

_LIGHT: Final = """
  --ink: #17202b; --soft: #556273; --faint: #8a95a5; --paper: #f4f6f8; --card: #ffffff; --rule: #dfe4ea;
  --grid: #e9edf1; --blue: #1f66d0; --deep: #0c3f8f; --wash: #1f66d022; --amber: #c2690a; --teal: #0d8577;
  --violet: #7652c0; --good: #157347; --goodwash: #e3f4ea; --bad: #c01f2e; --badwash: #fbe6e7;
  --span: #c2690a14; --edge: #c2690a66; --field: #e4e8ed; --cut: #17202b99;
  --note: #fff7e6; --noteline: #ecc46a;
"""
_DARK: Final = """
  --ink: #e6ebf2; --soft: #a3afbf; --faint: #75829a; --paper: #0e1319; --card: #161c24; --rule: #2b3440;
  --grid: #232b36; --blue: #6ea8ff; --deep: #b5d2ff; --wash: #6ea8ff2b; --amber: #f2a14e; --teal: #48c7b4;
  --violet: #b294f5; --good: #5fd394; --goodwash: #12301f; --bad: #ff7a80; --badwash: #3b1719;
  --span: #f2a14e17; --edge: #f2a14e66; --field: #28313c; --cut: #ffffff99;
  --note: #2a230f; --noteline: #7d6423;
"""

STYLE: Final = (
    ":root { color-scheme: light dark;"
    + _LIGHT
    + "}\n@media screen and (prefers-color-scheme: dark) { :root {"
    + _DARK
    + """} }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 Inter, system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1280px; margin: 0 auto; padding: 32px 28px 56px; }
header { margin-bottom: 24px; }
.eyebrow { color: var(--soft); font-size: 14px; margin: 0 0 6px; }
.eyebrow b { color: var(--ink); font-weight: 600; }
h1 { font-size: 29px; line-height: 1.22; letter-spacing: -.015em; font-weight: 650; margin: 0 0 8px;
  text-wrap: balance; }
h2 { font-size: 20px; letter-spacing: -.01em; font-weight: 640; margin: 40px 0 12px; }
h3 { font-size: 15px; font-weight: 620; margin: 0; }
p { margin: 0 0 8px; } .soft, .sub { color: var(--soft); } .sub { margin: 0; }
.pill { display: inline-block; padding: 1px 10px 2px; border-radius: 99px; font-size: 13px; font-weight: 600;
  white-space: nowrap; }
.eyebrow .pill { margin-left: 8px; }
.pill.good { color: var(--good); background: var(--goodwash); }
.pill.bad { color: var(--bad); background: var(--badwash); }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-bottom: 14px; }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 12px 16px 13px; } .tile .name { color: var(--soft); font-size: 13px; }
.tile .value { font-size: 25px; line-height: 1.25; letter-spacing: -.015em; font-weight: 620; }
.tile .more { color: var(--soft); font-size: 13px; } .tile.bad .value { color: var(--bad); }
.card { padding: 16px 20px 14px; margin-bottom: 14px; break-inside: avoid; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; align-items: stretch; }
.three { display: grid; grid-template-columns: repeat(var(--n, 3), minmax(0, 1fr)); gap: 0 18px; }
.three h4 { margin: 10px 0 2px; font-size: 14px; font-weight: 600; } .three .sub { font-size: 13px; }
.note { background: var(--note); border-color: var(--noteline); } .fault { border-color: var(--bad); }
.card ul { margin: 6px 0 4px; padding-left: 1.2em; max-width: 100ch; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; vertical-align: bottom;
  border-bottom: 1px solid var(--rule); }
th, td { padding: 5px 14px 5px 0; }
.many th, .many td { padding-right: 10px; }
td { border-bottom: 1px solid var(--grid); vertical-align: baseline; }
tr:last-child td { border-bottom: 0; } .n { text-align: right; } td.n, td.name { white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; } tbody + tbody td { border-top: 1px solid var(--rule); }
td.fault { color: var(--bad); font-weight: 650; }
.bar { display: inline-block; height: 7px; border-radius: 2px; background: var(--blue); opacity: .75;
  margin-left: 8px; vertical-align: 1px; } .track { display: inline-block; width: 72px; text-align: left; }
figure { margin: 0; } figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 18px;
  margin-bottom: 4px; } .key { color: var(--soft); font-size: 13px; white-space: nowrap; }
.key i { display: inline-block; width: 16px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: 4px; background: var(--c); } .key i.box { height: 11px; width: 11px; vertical-align: -1px; }
figure .sub { font-size: 13px; margin-top: 2px; }
details summary { cursor: pointer; font-weight: 620; } details[open] summary { margin-bottom: 8px; }
svg { display: block; width: 100%; height: auto; font-size: 12px; overflow: visible; }
svg text { fill: var(--soft); } svg .mark { fill: var(--amber); font-weight: 600; font-size: 12px; }
svg .value { fill: var(--ink); font-weight: 600; } svg .value, svg .mark, svg .promised { paint-order: stroke;
  stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
svg .promised { fill: var(--good); font-size: 11.5px; }
svg .band { font-size: 10px; fill: var(--faint); }
.grid { stroke: var(--grid); } .axis { stroke: var(--faint); }
.span { fill: var(--span); } .edge { stroke: var(--edge); stroke-dasharray: 3 3; } .hover { fill: #0000; }
.hover:hover { fill: var(--wash); } .cut { stroke: var(--cut); stroke-dasharray: 3 3; pointer-events: none; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.p50 { stroke: var(--deep); } .p99 { stroke: var(--blue); stroke-width: 2.2; } .between { fill: var(--wash); }
.max { stroke: var(--amber); stroke-width: 1.4; } .point { fill: var(--blue); }
.limit { stroke: var(--good); stroke-dasharray: 6 4; } .reports { stroke: var(--faint); stroke-width: 3.4; }
.verdicts { stroke: var(--blue); } .all { stroke: var(--faint); } .ready { stroke: var(--teal); }
.cpu-pods { fill: var(--blue); } .cpu-lab { fill: var(--violet); } .cpu-server { fill: var(--teal); }
.cpu-pods, .cpu-lab, .cpu-server { fill-opacity: .8; stroke: var(--card); stroke-width: .8; }
.field { fill: var(--field); } .second { fill-opacity: .58; } .unowned { fill: #e5142b; }
.twice { fill: var(--ink); }
g rect:hover { stroke: var(--ink); stroke-width: 1.5; }
@media screen and (max-width: 1080px) { main { padding: 24px 20px 40px; } h1 { font-size: 26px; } }
@media screen and (max-width: 760px) { .tiles { grid-template-columns: 1fr 1fr; }
  .two, .three { grid-template-columns: 1fr; } }
@media print { @page { size: A4 landscape; margin: 12mm; } body { background: #fff; font-size: 12px; }
  main { max-width: none; padding: 0; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2, figcaption { break-after: avoid; } tr, .tile, .two { break-inside: avoid; }
  h1 { font-size: 22px; } .tile .value { font-size: 19px; } .two svg { max-height: 62mm; } }
"""
)
