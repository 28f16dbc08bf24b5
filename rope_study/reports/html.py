"""The base of every page: one HTML file with its style and its scripts, off the network."""

import base64
import hashlib
import string
from collections.abc import Mapping
from html import escape
from importlib import resources

PACKAGE = "rope_study.reports"


def page(title: str, body: str, style: str, script: str = "") -> str:
    """A whole document, whose policy makes "asks nothing of the network" the browser's promise.

    Style attributes do not work in it: the policy allows the style sheet and the script alone.

    Args:
      title: as plain text.
      body: HTML, escaped by the caller.
      style: CSS of this page, after base.css.
      script: JavaScript that runs after the body is there.
    """
    style = read("base.css") + style
    return fill(
        read("base.html"),
        title=escape(title),
        style=style,
        style_hash=_hash(style),
        script_source=f"'{_hash(script)}'" if script else "'none'",
        script=f"<script>{script}</script>" if script else "",
        body=body,
    )


def facts(values: Mapping[str, object]) -> str:
    """A list of labels and values."""
    items = (
        f"<div><dt>{escape(label)}</dt><dd>{escape(number(value))}</dd></div>"
        for label, value in values.items()
    )
    return '<dl aria-label="Key facts">\n' + "\n".join(items) + "\n</dl>"


def number(value: object) -> str:
    """A value as text; large integers in groups of three digits, small ones may be years."""
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def fill(template: str, **values: str) -> str:
    """The template with a value for each $name."""
    return string.Template(template).substitute(values)


def read(name: str, package: str = PACKAGE) -> str:
    """A text file that lies beside the modules of a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What the policy knows a style sheet or a script by: any other is not used."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
