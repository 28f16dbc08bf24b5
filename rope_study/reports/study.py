"""The report of a study: one HTML page that carries its figures and asks nothing of the network."""

import base64
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from rope_study.files import atomic, write_atomically
from rope_study.files.paths import to_path
from rope_study.reports import html
from rope_study.reports.results import spread

DPI = 150
CSS_DPI = 96  # a CSS inch
# Key, heading, format; a column that no row has is left out.
COLUMNS = (
    ("name", "encoding", ""),
    ("perplexity", "validation perplexity", ".4f"),
    ("loss", "validation loss [nats/token]", ".4f"),
    ("difference", "difference in loss ±", "+.4f"),
    ("train_loss", "training loss [nats/token]", ".4f"),
    ("tokens_per_second", "tokens/s", ",.0f"),
    ("skipped_updates", "updates left out", ","),
)


def write_report(
    path: str | os.PathLike,
    results: dict,
    figures: Mapping[str, Figure],
    figure_folder: Path | None = None,
) -> None:
    """Writes the page of a study, whole or not at all.

    Args:
      path: the HTML file; its folder is made where missing.
      results: "encodings": a dict for each row with name, perplexity, loss (nats/token),
        difference (in loss from the first encoding, which has none), how far that may be off as
        difference_interval (95 % over seeds) or difference_se (one seed: its paired standard
        error over windows), train_loss (nats/token), and tokens_per_second;
        "facts": label -> value; "captions": key of a figure -> what to look for in it;
        and, where given, "title" and "summary" (what was run).
      figures: key -> Figure, in the order of the page.
      figure_folder: where the same pictures are written as KEY.png; nowhere if not given.
    """
    pictures = {key: _png(figure) for key, figure in figures.items()}
    if figure_folder is not None:
        for key, picture in pictures.items():
            with atomic(figure_folder / f"{key}.png") as part:
                part.write_bytes(picture)
    encodings = results["encodings"]
    title = results.get("title", "rope_study: encodings side by side")
    body = html.fill(
        html.read("study.html"),
        title=html.escape(title),
        summary=html.escape(results.get("summary") or _summary(encodings)),
        table=_table(encodings),
        note=html.escape(_note(encodings)),
        facts=html.facts(results["facts"]),
        figures="\n".join(
            _figure(key, figure, pictures[key], results["captions"].get(key, ""))
            for key, figure in figures.items()
        ),
    )
    style = html.read("study.css") + _sizes(figures.values())
    write_atomically(to_path(path), html.page(title, body, style))


def _summary(encodings: list[dict]) -> str:
    names = ", ".join(row["name"] for row in encodings)
    return (
        f"{len(encodings)} models that differ only in what their names say ({names}) were"
        " trained on the same tokens in the same order and compared on the same held-out tokens."
    )


def _note(encodings: list[dict]) -> str:
    note = (
        f"Difference: validation loss minus that of {encodings[0]['name']} on the same tokens, in"
        " nats/token; negative is better."
    )
    if any("difference_interval" in row for row in encodings):
        return (
            f"{note} Means over seeds, paired by seed; ± is half the width of a 95 % interval"
            " (Student's t) of the mean difference over seeds."
        )
    return (
        f"{note} ± is one standard error of the paired difference over held-out windows; how much a"
        " difference varies from seed to seed it does not say."
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
        text += f" ± {spread(row):.4f}"
    return f"<td>{html.escape(text)}</td>"


def _sizes(figures: Iterable[Figure]) -> str:
    """Style that shows figures at their size; narrow screens shrink them to 70 % and scroll."""
    widths = [round(figure.get_figwidth() * CSS_DPI) for figure in figures]
    return "".join(
        f"figure:nth-of-type({i}) img {{ max-width: {width}px; min-width: {0.7 * width:.0f}px }}\n"
        for i, width in enumerate(widths, start=1)
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _figure(key: str, figure: Figure, picture: bytes, caption: str) -> str:
    data = base64.b64encode(picture).decode("ascii")
    alt = " ".join((figure.get_suptitle() or key).split())
    return (
        f'<figure id="{html.escape(key)}"><div class="wide" tabindex="0" role="region"'
        f' aria-label="{html.escape(alt)}">'
        f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
