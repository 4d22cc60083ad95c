"""The look shared by all pages: palette, style sheet, escaping and the small pieces of HTML."""

import base64
import hashlib
import html
import string
from collections.abc import Sequence
from typing import Any, TypeVar

from sptad_jax.files import AnyPath, write_text

_Path = TypeVar("_Path", bound=AnyPath)

# Okabe and Ito's colour-blind safe colours without black and yellow (too faint on white); (light page, dark page).
PALETTE = (
    ("#0072b2", "#4aa8e0"),
    ("#d55e00", "#f0803c"),
    ("#009e73", "#2fc49a"),
    ("#cc79a7", "#df96bf"),
    ("#b27a00", "#e6a817"),
    ("#56b4e9", "#8ccbf0"),
    ("#6b6f76", "#a3a8b0"),
)

_CSS = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5c6670; --line: #dfe3e7; --page: #ffffff; --panel: #f6f7f9;
  --heat: 0 114 178; --wrong: 213 94 0; $light }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa4ae; --line: #333a42; --page: #15181c;
  --panel: #1d2126; --heat: 48 128 190; --wrong: 200 96 30; $dark } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header.top { max-width: 1080px; margin: 0 auto; padding: 0 28px; }
header.top { padding-top: 40px; }
h1 { font-size: 27px; line-height: 1.25; font-weight: 650; margin: 0 0 4px; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 19px; font-weight: 650; margin: 0 0 6px; }
h3 { font-size: 15px; font-weight: 600; margin: 26px 0 4px; overflow-wrap: anywhere; }
section { padding: 30px 0 6px; border-top: 1px solid var(--line); margin-top: 30px; }
section:first-of-type { border-top: 0; margin-top: 0; padding-top: 18px; }
p { margin: 0 0 12px; max-width: 76ch; } .soft, figcaption, .note { color: var(--soft); } .note, figcaption {
  font-size: 13px; line-height: 1.5; }
.empty { background: var(--panel); border-radius: 8px; padding: 12px 16px; color: var(--soft); max-width: none;
  overflow-wrap: anywhere; }
nav { font-size: 13px; margin: 14px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; }
a { color: var(--c0); text-decoration: none; } a:hover { text-decoration: underline; }
ul.empty { padding-left: 34px; }
.swatch { display: inline-block; width: 26px; height: 10px; border-radius: 2px; margin: 0 6px 0 16px; }
.swatch:first-child { margin-left: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 16px 0 20px; }
.tile { background: var(--panel); border-radius: 10px; padding: 13px 16px; min-width: 0; }
.tile b { display: block; font-size: 23px; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.tile span { color: var(--soft); font-size: 13px; } 
.tile.main b { color: var(--c0); font-size: 32px; line-height: 1.1; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(430px, 100%), 1fr)); gap: 22px 28px;
  margin: 12px 0; }
figure { margin: 0; min-width: 0; } figure svg { width: 100%; height: auto; display: block; }
figcaption { margin-top: 2px; } figcaption b { color: var(--ink); font-weight: 600; }
svg text { font-family: inherit !important; }
.scroll { overflow: auto; max-height: 620px; margin: 10px 0 14px; } .wide { overflow-x: auto; }
.wide > svg { min-width: 760px; width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { font-weight: 600; text-align: left; } th, td { padding: 4px 11px; white-space: nowrap; }
td.n, th.n { text-align: right; } thead th { border-bottom: 1.5px solid var(--ink); position: sticky; top: 0;
  background: var(--page); } tbody th { font-weight: 400; max-width: 260px; overflow: hidden; text-overflow: ellipsis; }
table.ruled { border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink); }
table.ruled tbody tr + tr > * { border-top: 1px solid var(--line); }
td.heat { --shade: rgb(var(--heat) / calc(var(--v) * 0.62));
  background: linear-gradient(var(--shade), var(--shade)), var(--panel); text-align: center; min-width: 62px;
  border: 1px solid var(--page); }
td.heat.wrong { --shade: rgb(var(--wrong) / calc(var(--v) * 0.62)); }
table.confusion td { min-width: 34px; padding: 4px 5px; font-size: 12.5px; }
table.confusion thead th { border: 0; padding: 6px 4px; font-weight: 400; vertical-align: bottom; text-align: center; }
table.confusion thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 150px;
  overflow: hidden; text-overflow: ellipsis; display: inline-block; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--c0); font-size: 14px; }
pre { background: var(--panel); border-radius: 8px; padding: 12px 16px; overflow-x: auto; user-select: all;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
td.value { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12.5px;
  white-space: normal; overflow-wrap: anywhere; max-width: 460px; } tr.changed td, tr.changed th { font-weight: 650; }
.options { columns: 2; column-gap: 32px; } .options > div { break-inside: avoid; margin-bottom: 18px; }
.options table { width: 100%; } .options h3 { margin-top: 0; }
footer { color: var(--soft); font-size: 13px; padding: 28px 0 40px; }
@media (max-width: 760px) { .options { columns: 1; } main, header.top { padding-left: 16px; padding-right: 16px; } }
.stage { display: grid; grid-template-columns: minmax(0, 11fr) minmax(0, 9fr); gap: 4px 24px; align-items: start; }
.stage > .wide { grid-area: 2 / 1 / auto / -1; margin-top: 10px; } .stage > details { grid-area: 1 / 2; margin: 0; }
.stage .scroll { max-height: 320px; margin: 6px 0; } .stage table { width: 100%; }
.stage th, .stage td { padding: 3px 7px; } .stage tbody th { width: 100%; max-width: 0; }
video { display: block; width: 100%; aspect-ratio: 16 / 9; background: #101214; border-radius: 8px; }
.now { min-height: 20px; margin: 4px 0 0; overflow-wrap: anywhere; } [hidden], .off { display: none !important; }
.filter { background: var(--panel); border-radius: 10px; padding: 12px 16px; font-size: 14px; }
.filter label { display: inline-flex; align-items: center; gap: 8px; } .filter > label { white-space: nowrap; }
.filter p { margin: 6px 0 0; max-width: none; }
.filter ul { list-style: none; margin: 8px 0 0; padding: 4px; max-height: 230px; overflow-y: auto; display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(190px, 100%), 1fr)); gap: 2px 16px; }
.filter li { min-width: 0; overflow-wrap: anywhere; }
.filter li .swatch { margin: 0; flex: none; }
.filter input[type=range] { width: min(260px, 38vw); } input { accent-color: var(--c0); }
.filter input[type=search], .filter button { font: inherit; color: inherit; background: var(--page);
  border: 1px solid var(--soft); border-radius: 6px; padding: 3px 10px; margin: 6px 6px 0 0; max-width: 100%; }
output { font-variant-numeric: tabular-nums; } kbd { font: inherit; color: var(--ink); background: var(--page);
  border: 1px solid var(--line); border-radius: 4px; padding: 0 5px; white-space: nowrap; }
.live .bar, .live tr[data-item] { cursor: pointer; } .live svg.timeline { cursor: text; touch-action: manipulation; }
.live .bar:hover { stroke: var(--ink); } .bar.chosen, .bar:focus-visible { stroke: var(--ink); stroke-width: 2; }
.bar:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 3px; border-radius: 3px; }
tr:focus-visible { outline-offset: -2px; }
.live tr[data-item]:hover, tr.chosen { background: var(--panel); } tr.chosen > * { box-shadow: inset 0 -2px var(--c0); }
.row:not(:has(.bar:not(.off))) { opacity: 0.3; } .cursor { stroke: var(--c1); stroke-width: 2; pointer-events: none; }
@media (max-width: 760px) { .stage { display: block; } }
@media print { .filter, video { display: none; } .scroll { max-height: none; } section { break-inside: avoid-page; } }
"""

# file: beside 'self', which some browsers hold to be no origin where a page is opened from a folder
_POLICY = ("default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src 'self' file:; base-uri 'none'; "
           "form-action 'none'")

_PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$css</style>
</head>
<body>
<header class="top"><h1>$title</h1>
<div class="soft">$subtitle</div>
<nav>$links</nav></header>
<main>
$body
<footer>$footer</footer>
</main>
$script</body>
</html>
""")


def text(value: Any) -> str:
    """Escapes what a user wrote (names, labels, paths) for HTML and attributes; control characters are replaced."""
    printable = "".join(c if c >= " " and c != "\x7f" and not "\ud800" <= c <= "\udfff" else "�" for c in str(value))
    return html.escape(printable, quote=True)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]], footer: str, script: str = "") -> str:
    """The whole document. `title` is plain; `subtitle` and `footer` are HTML; a section is (id, heading, HTML).

    The browser is told to load nothing but what lies in the page, and videos beside it, and to run `script` alone.
    """
    light, dark = (" ".join(f"--c{k}: {pair[side]};" for k, pair in enumerate(PALETTE)) for side in (0, 1))
    return _PAGE.substitute(
        title=text(title),
        css=string.Template(_CSS).substitute(light=light, dark=dark),
        subtitle=subtitle,
        links="".join(f'<a href="#{name}">{text(heading)}</a>' for name, heading, _ in sections),
        body="\n".join(f'<section id="{n}"><h2>{text(h)}</h2>\n{inner}</section>' for n, h, inner in sections),
        footer=footer,
        policy=_POLICY + _script_source(script),
        script=f"<script>{script}</script>\n" if script else "",
    )


def _script_source(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"; script-src 'sha256-{digest}'" if script else ""


def write_page(path: _Path, document: str) -> _Path:
    """Writes the document whole, in a folder that is made where it is missing, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, document)
    return path


def empty(sentence: str) -> str:
    """What stands in place of a part that cannot be drawn yet."""
    return f'<p class="empty">{text(sentence)}</p>'


def listing(sentences: Sequence[str]) -> str:
    """Several such sentences in one frame."""
    items = "".join(f"<li>{text(s)}</li>" for s in sentences)
    return f'<ul class="empty">{items}</ul>' if items else ""


def plural(number: int, noun: str) -> str:
    """1, "video" -> "1 video"; 1200, "video" -> "1,200 videos"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def figure(svg: str, heading: str, caption: str) -> str:
    """A chart (SVG markup) with a plain-text heading and caption."""
    return f"<figure>{svg}<figcaption><b>{text(heading)}.</b> {text(caption)}</figcaption></figure>"


def tile(value: str, label: str, main: bool = False) -> str:
    """A number with the words that explain it."""
    return f'<div class="tile{" main" if main else ""}"><b>{text(value)}</b><span>{text(label)}</span></div>'


def percent(share: Any) -> str:
    """0.4567 -> "45.7"; an en dash for what is missing or not finite."""
    if isinstance(share, (int, float)) and not isinstance(share, bool) and abs(share) <= 1e9:
        return f"{100 * share:.1f}"
    return "–"


def count(value: Any) -> str:
    """1234567 -> "1,234,567"; an en dash for what is no whole number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "–"


def duration(seconds: float) -> str:
    """3725 -> "1 h 02 min"; 95 -> "1 min 35 s"; 9.5 -> "9.5 s"."""
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
