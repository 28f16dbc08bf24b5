"""What a variant of a decoder may be made of: `python -m rope_study.encodings`.

Printed from signatures and docstrings, so that it says what the code says.
"""

import inspect
from collections.abc import Callable
from typing import Any

from rope_study import command
from rope_study.decoder import LayerSpec, attention, presets, variants
from rope_study.decoder.config import ATTENTION, AUTO
from rope_study.registry import signature_text

TITLES = {
    "rotary": "Encodings",
    "qk_norm": "Normalisations of queries and keys",
    "query_scale": "Scales on the queries",
    "score_function": "Score functions",
    "pattern": "Layer patterns",
}


def listing() -> str:
    """Every term of a variant with its arguments, what it does, and the attention backends."""
    sections = []
    for field, title in TITLES.items():
        sections.append(f"{title}\n{'=' * len(title)}")
        registry = variants.REGISTRIES[field]
        sections += [entry(field, name, registry[name]) for name in registry]
    return "\n\n".join(sections)


def entry(field: str, name: str, maker: Callable[..., Any]) -> str:
    """One term: `field` is its key in variants.REGISTRIES, `maker` its constructor."""
    lines = (inspect.getdoc(maker) or "").splitlines()
    if field == "rotary":
        lines.append(f"relative: {'yes' if maker.relative else 'no'}")  # type: ignore[attr-defined]
    lines.append(f"attention: {', '.join(_backends(field, maker))}")
    return "\n".join(
        [f"{name}({signature_text(maker)})", *(f"  {line}".rstrip() for line in lines)]
    )


def _backends(field: str, maker: Callable[..., Any]) -> list[str]:
    """Those that run it on the device they are for; "auto" takes the best that is there."""
    if field == "score_function":
        return list(maker.backends)  # type: ignore[attr-defined]
    layers = maker() if field == "pattern" else (LayerSpec(),)
    config, names = presets.gemma_2b(), [name for name in ATTENTION if name != AUTO]
    return [n for n in names if not any(attention.refusal(n, config, spec) for spec in layers)]


def main() -> None:
    """The command."""
    command.run_flags(lambda: print(listing()), lambda: None, __doc__)


if __name__ == "__main__":
    main()
