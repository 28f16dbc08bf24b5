"""The report of a study: one HTML page that carries its figures and asks nothing of the network."""

import base64
import html
import io
import os
import string
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from rope_study.files import write_atomically

DPI = 150
CSS_DPI = 96  # a CSS inch
# Key, heading, format; a column that no row has is left out.
COLUMNS = (
    ("name", "encoding", ""),
    ("perplexity", "validation perplexity", ".4f"),
    ("loss", "validation loss [nats/token]", ".4f"),
    ("difference", "difference in loss ± s.e.", "+.4f"),
    ("train_loss", "training loss [nats/token]", ".4f"),
    ("tokens_per_second", "tokens/s", ",.0f"),
)

# The policy makes "no external requests" a promise that the browser keeps.
PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --faint: #5c5c5c; --rule: #d0d0d0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181c; --faint: #a8a8a8; --rule: #44474d }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, sans-serif }
h1, h2 { line-height: 1.25 } h2 { margin-top: 2.5rem }
p, figcaption { max-width: 46rem } .note, figcaption { color: var(--faint); font-size: .9rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: bottom }
th:first-child, td:first-child { text-align: left } td { white-space: nowrap }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem }
dt { color: var(--faint) } dd { margin: 0; overflow-wrap: anywhere }
figure { margin: 2rem 0 } figcaption { margin-top: .6rem }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px }
</style>
</head>
<body>
<h1>$title</h1>
<p>$summary</p>
<h2>Results</h2>
<div class="wide" tabindex="0" role="region" aria-label="Results"><table>
$table
</table></div>
<p class="note">$note</p>
<h2>Key facts</h2>
<dl>
$facts
</dl>
<h2>Figures</h2>
$figures
</body>
</html>
""")


def write_report(path: str | os.PathLike, results: dict, figures: Mapping[str, Figure]) -> None:
    """Writes the page of a study, whole or not at all.

    Args:
      path: the HTML file; its folder is made where missing.
      results: "encodings": a dict for each row with name, perplexity, loss (nats/token),
        difference (mean difference in loss from the first encoding, None for the first),
        difference_se (its paired standard error), train_loss (nats/token), and
        tokens_per_second;
        "facts": label -> value; "captions": key of a figure -> what to look for in it;
        and, where given, "title" and "summary" (what was run).
      figures: key -> Figure, in the order of the page.
    """
    encodings = results["encodings"]
    first = encodings[0]["name"]
    page = PAGE.substitute(
        title=html.escape(results.get("title", "rope_study: encodings side by side")),
        summary=html.escape(results.get("summary") or _summary(encodings)),
        table=_table(encodings),
        note=html.escape(
            f"Difference: validation loss minus that of {first} on the same tokens, in nats/token;"
            " negative is better. ± is one standard error of the paired difference over held-out"
            " windows; how much a difference varies from seed to seed it does not say."
        ),
        facts="\n".join(_fact(label, value) for label, value in results["facts"].items()),
        figures="\n".join(
            _figure(key, figure, results["captions"].get(key, ""))
            for key, figure in figures.items()
        ),
    )
    write_atomically(Path(path), page)


def _summary(encodings: list[dict]) -> str:
    names = ", ".join(row["name"] for row in encodings)
    return (
        f"{len(encodings)} models that differ only in their rotary encoding ({names}) were"
        " trained on the same tokens in the same order and compared on the same held-out tokens."
    )


def _table(encodings: list[dict]) -> str:
    columns = [column for column in COLUMNS if any(column[0] in row for row in encodings)]
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for _, heading, _ in columns)
    body = "\n".join(
        "<tr>" + "".join(_cell(row, key, form) for key, _, form in columns) + "</tr>"
        for row in encodings
    )
    return f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"


def _cell(row: dict, key: str, form: str) -> str:
    value = row.get(key)
    text = "–" if value is None else format(value, form)  # noqa: RUF001, a dash is meant
    if key == "difference" and value is not None:
        text += f" ± {row['difference_se']:.4f}"
    return f"<td>{html.escape(text)}</td>"


def _fact(label: str, value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
    return f"<dt>{html.escape(label)}</dt><dd>{html.escape(text)}</dd>"


def _figure(key: str, figure: Figure, caption: str) -> str:
    """The figure at its own size; narrow screens shrink it to 70 % and scroll from there."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(figure.get_figwidth() * CSS_DPI)
    alt = " ".join((figure.get_suptitle() or key).split())
    return (
        f'<figure id="{html.escape(key)}"><div class="wide" tabindex="0" role="region"'
        f' aria-label="{html.escape(alt)}">'
        f'<img style="max-width: {width}px; min-width: {round(0.7 * width)}px"'
        f' alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
