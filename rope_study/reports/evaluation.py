"""What the command `evaluate` writes: NetCDF, a table and a figure."""

from pathlib import Path

import numpy as np
import xarray

from rope_study import figures, probes
from rope_study.files import atomic, write_atomically

HEADER = ("encoding", "length", "loss ± 95 %", "perplexity, 95 %", "difference ± 95 %")


def write(folder: Path, evaluation: xarray.Dataset) -> list[Path]:
    """Writes everything into a folder, which is made; returns the paths."""
    names = "evaluation.nc", "table.md", "loss_by_position.png"
    dataset, text, picture = (folder / name for name in names)
    probes.save(evaluation, dataset)
    write_atomically(text, table(evaluation) + "\n")
    with atomic(picture) as part:
        figures.loss_by_position(evaluation).savefig(part, dpi=150)
    return [dataset, text, picture]


def table(evaluation: xarray.Dataset) -> str:
    """The losses by length and by position, in Markdown."""
    e = evaluation
    trained = e.attrs.get("trained_length")
    about = (
        f"{e.model}; {e.text}, documents {e.across}: {e.documents:,} with {e.tokens:,} tokens."
        " Loss in nats a token, intervals over documents; differences from the first encoding are"
        " paired."
    )
    rows = [
        (
            str(name),
            _beyond(length, trained),
            _number(at.loss, at.loss_interval),
            _perplexity(at),
            _number(at.difference, at.difference_interval, "+") if index else "-",
        )
        for index, name in enumerate(e.rotary.values)
        for length in e.length.values
        for at in [e.isel(rotary=index).sel(length=length)]
    ]
    longest = e.sel(length=e.length.max())
    by_position = [
        (
            _beyond(int(group.position), trained, int(group.position_first)),
            f"{int(group.position_tokens):,}",
            *(
                _number(*pair)
                for pair in zip(group.position_loss, group.position_loss_interval, strict=True)
            ),
        )
        for group in (longest.isel(position=i) for i in range(e.sizes["position"]))
        if group.position_tokens
    ]
    header = ("tokens read before", "tokens", *map(str, e.rotary.values))
    parts = [about, markdown([HEADER, *rows]), markdown([header, *by_position])]
    if trained is not None:
        parts.append(f"\\* beyond the {trained:,} tokens that the model was trained on")
    return "\n\n".join(parts)


def _beyond(length: int, trained: int | None, first: int | None = None) -> str:
    """A length, or positions first..length, with a star beyond the trained length."""
    words = f"{length:,}" if first in (None, length) else f"{first:,} to {length:,}"
    return words if trained is None or length <= trained else f"{words} *"


def _number(mean: xarray.DataArray, half: xarray.DataArray, sign: str = "") -> str:
    """A mean and half the width of its interval, where there is one."""
    words = f"{float(mean):{sign}.4f}"
    return words if np.isnan(half) else f"{words} ± {float(half):.4f}"


def _perplexity(at: xarray.Dataset) -> str:
    value, low, high = (float(at[f"perplexity{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.4g}" if np.isnan(low) else f"{value:.4g} ({low:.4g} to {high:.4g})"


def markdown(rows: list[tuple[str, ...]]) -> str:
    """A table whose first row is its header, its columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)
