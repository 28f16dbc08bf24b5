"""The list of everything that names an encoding: `python -m rope_study.encodings`.

Made from signatures and docstrings, so that it says what the code says.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable

from rope_study import attention, rotary, variants

TITLES = {
    "rotary": "Encodings",
    "qk_norm": "Normalisations of queries and keys",
    "query_scale": "Scales on the queries",
    "logits": "Logit functions",
    "pattern": "Layer patterns",
}


def listing() -> str:
    """Everything that a variant's terms can be, with arguments, formula, source and backends."""
    sections = []
    for field, title in TITLES.items():
        sections.append(f"{title}\n{'=' * len(title)}")
        sections += [entry(field, name, make) for name, make in variants.TABLES[field].items()]
    return "\n\n".join(sections)


def entry(field: str, name: str, make: Callable) -> str:
    """One term: `field` is its key in variants.TABLES, `make` its constructor."""
    about = _encoding(make) if field == "rotary" else inspect.getdoc(make).splitlines()
    about = [*filter(None, about), f"attention: {', '.join(_backends(field, make))}"]
    return "\n".join([f"{name}({_arguments(make)})", *(f"  {line}" for line in about)])


def _backends(field: str, make: Callable) -> tuple[str, ...]:
    """Logit functions and chunks need the reference; what changes q and k runs on every backend."""
    layers = make() if field == "pattern" else ()
    special = any(spec.chunk is not None or spec.logits is not None for spec in layers)
    return ("reference",) if special or field == "logits" else attention.BACKENDS


def _arguments(make: Callable) -> str:
    parameters = inspect.signature(make).parameters.values()
    return ", ".join(str(parameter.replace(annotation=parameter.empty)) for parameter in parameters)


def _encoding(function: Callable[..., rotary.Encoding]) -> list[str]:
    about = documentation(function)
    relative = inspect.signature(function).return_annotation.relative
    return [
        about.summary,
        f"formula: {about.formula}",
        f"source: {about.source}",
        *(f"{name}: {text}" for name, text in about.parameters.items()),
        f"relative: {'yes' if relative else 'no'}",
    ]


@dataclasses.dataclass(frozen=True)
class Documentation:
    """The parts of an encoding's docstring, each on one line."""

    summary: str
    formula: str
    source: str
    parameters: dict[str, str]


def documentation(function: Callable) -> Documentation:
    """Reads a docstring: its first line, "Formula: ", "Source: " and "Args:"."""
    text = inspect.getdoc(function) or ""

    def section(name: str) -> str:
        found = re.search(rf"^{name}: (.*(?:\n  .*)*)", text, re.MULTILINE)
        return " ".join(found[1].split()) if found else ""

    args = re.search(r"^Args:\n((?:  .*\n?)*)", text, re.MULTILINE)
    parameters = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", args[1] if args else "", re.MULTILINE)
    return Documentation(
        summary=text.partition("\n")[0],
        formula=section("Formula"),
        source=section("Source"),
        parameters={name: " ".join(words.split()) for name, words in parameters},
    )
