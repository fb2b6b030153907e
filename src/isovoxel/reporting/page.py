"""How is a page written that needs nothing but itself? HTML with its own style, and no word that is not escaped.

Nothing is fetched, nothing runs; light or dark is what the reader's system says. What looks like a secret is left out.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from isovoxel.reporting.own import MARK
from isovoxel.reporting.records import Line
from isovoxel.reporting.svg import FONT, escaped, style
from isovoxel.version import __version__

_STYLE = f"""
:root{{color-scheme:light dark;--paper:#fff;--ink:#1c2230;--soft:#5b6579;--rule:#dfe4ee;--face:#f3f6fb;--bad:#b4420b}}
@media (prefers-color-scheme:dark){{
:root{{--paper:#10121b;--ink:#e2e6f0;--soft:#a3acc0;--rule:#272c3c;--face:#191d2b;--bad:#ff9d5c}}}}
body{{margin:0 auto;padding:28px 32px 56px;max-width:1240px;background:var(--paper);color:var(--ink);
font:15px/1.5 {FONT}}}
h1{{font-size:25px;margin:0 0 4px;font-weight:600;overflow-wrap:anywhere}}
h2{{font-size:18px;margin:38px 0 10px;font-weight:600}}
h3{{font-size:15px;margin:0 0 6px;font-weight:600}}
p{{margin:0 0 10px;max-width:900px}}
.soft{{color:var(--soft)}} .bad{{color:var(--bad);font-weight:600}}
.tiles{{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0 0}}
.tiles div{{background:var(--face);border-radius:8px;padding:10px 16px;min-width:110px}}
.tiles b{{display:block;font-size:21px;font-weight:600;white-space:nowrap}}
.tiles span{{color:var(--soft);font-size:13px}}
.row{{display:flex;flex-wrap:wrap;gap:20px}}
.row figure{{flex:1 1 520px;margin:0;min-width:0}}
img,svg{{max-width:100%;height:auto;display:block}} img{{border-radius:6px;width:100%}}
.legend{{display:flex;flex-wrap:wrap;gap:4px 22px;margin:8px 0 22px}} .legend svg{{display:inline}}
table{{border-collapse:collapse;width:100%}}
th,td{{text-align:left;vertical-align:top;padding:5px 14px 5px 0;border-bottom:1px solid var(--rule);
overflow-wrap:anywhere}}
th{{font-weight:400;color:var(--soft);white-space:nowrap;width:1%}}
code{{font:13px/1.5 ui-monospace,'DejaVu Sans Mono',monospace;overflow-wrap:anywhere}}
pre{{background:var(--face);border-radius:8px;padding:12px 16px;margin:0 0 10px;white-space:pre-wrap}}
""".strip()


def page(title: str, *sections: str) -> bytes:
    """Return a whole page.

    Parameters
    ----------
    title
        What its window says; not escaped yet.
    *sections
        HTML.
    """
    head = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="generator" '
        f'content="{MARK} {escape(__version__)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escaped(title)}</title>'
        f"<style>{_STYLE}\n{style()}</style></head><body>\n"
    )
    return f"{head}{chr(10).join(s for s in sections if s)}\n</body></html>\n".encode()


def section(title: str, *parts: str) -> str:
    """Return a section of HTML, with a title that is not escaped yet; nothing where it has no parts."""
    inside = "\n".join(part for part in parts if part)
    return f"<section><h2>{escaped(title)}</h2>\n{inside}</section>" if inside else ""


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph of text."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escaped(words)}</p>"


def preformatted(words: str) -> str:
    """Return text such as a command, as it is."""
    return f"<pre><code>{escaped(words)}</code></pre>"


def table(lines: Sequence[Line]) -> str:
    """Return labels and what they label."""
    # Said of each cell, for notebooks have their own idea of how tables look.
    left = 'style="text-align:left"'
    rows = "".join(f"<tr><th {left}>{escaped(label)}</th><td {left}>{escaped(what)}</td></tr>" for label, what in lines)
    return f"<table>{rows}</table>" if rows else ""


def tiles(numbers: Sequence[Line]) -> str:
    """Return what each number counts, and the number in large."""
    inside = "".join(f"<div><b>{escaped(value)}</b><span>{escaped(name)}</span></div>" for name, value in numbers)
    return f'<div class="tiles">{inside}</div>'


def picture(png: bytes, says: str) -> str:
    """Return a PNG as a part of the page."""
    data = b64encode(png).decode()
    return f'<figure><img alt="{escaped(says)}" src="data:image/png;base64,{data}"></figure>'


def row(*figures: str) -> str:
    """Return figures beside each other, where the window is wide enough."""
    return f'<div class="row">{"".join(figures)}</div>'


def figure(title: str, svg: str) -> str:
    """Return a drawing with its title."""
    return f"<figure><h3>{escaped(title)}</h3>{svg}</figure>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return what drawn keys mean."""
    inside = "".join(f"<span>{svg} {escaped(words)}</span>" for svg, words in entries)
    return f'<div class="legend">{inside}</div>'
