"""What probes measure of one model on texts, and its files: NetCDF, figures, the page of heads."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray
from matplotlib.figure import Figure
from tqdm import tqdm

from rope_study import figures, probes
from rope_study.data import Text, Tokenizer
from rope_study.decoder import Decoder, check_vocabulary, layout_of
from rope_study.errors import UserError
from rope_study.figures.attention import MOST_LABELS
from rope_study.figures.usage import MOST_DOMAINS
from rope_study.files import atomic
from rope_study.probes import Probe
from rope_study.reports import head_page
from rope_study.sharding import is_main_process

# What --probes takes. Each is made for the tokenizer of the model.
PROBES: dict[str, Callable[[Tokenizer], Probe]] = {
    "frequency_usage": lambda tokenizer: probes.frequency_usage,
    "head_patterns": lambda tokenizer: probes.head_patterns(tokenizer=tokenizer),
    "sinks": lambda tokenizer: probes.sinks(),
    "massive_values": lambda tokenizer: probes.massive_values(),
    "rotary_outliers": lambda tokenizer: probes.rotary_outliers(),
    "spectral": lambda tokenizer: probes.spectral(),
}
LENGTH = 512
PAGE = ("frequency_usage", "head_patterns")  # what the page shows
SHORTEST = 64  # tokens; shorter texts are padded to as many
Batch = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Measurements:
    """What the probes measured.

    Attributes:
      datasets: by probe; head_names beside them where head_patterns ran.
      by_label: frequency_usage of the texts of each label; empty where texts have none.
      maps: attention[layer, head, query, key] of the first texts.
    """

    datasets: Mapping[str, xarray.Dataset]
    by_label: Mapping[str, xarray.Dataset]
    maps: Sequence[xarray.DataArray]


def probe(
    decoder: Decoder,
    params: dict,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    names: Sequence[str] = PAGE,
    *,
    about: str = "",
    length: int | None = None,
    batch: int = 8,
    page_texts: int = 3,
    page_tokens: int = 48,
    stopped: Callable[[], bool] = lambda: False,
) -> Measurements:
    """Runs probes by name over texts.

    Texts of about one length are read together, as padding takes as long as text.

    Args:
      decoder, params, tokenizer: as checkpoints.load and load_tokenizer give them.
      texts: what to read, of load_texts.
      names: keys of PROBES.
      about: names the texts in figures.
      length: the most tokens of a text that are read; LENGTH, or the trained length where that is
        less, if not given.
      batch: texts at once, rounded up to what divides over the devices.
      page_texts, page_tokens: of how many texts, and how many of their tokens, to keep the
        attention of every head; never past the trained length.
      stopped: asked after every batch; once True, what was read until then is all that is.
    """
    check_vocabulary(decoder.config, tokenizer)

    length = length or decoder.config.at_most_trained(LENGTH)
    labels = list(dict.fromkeys(text.label for text in texts if text.label is not None))
    if "frequency_usage" not in names:
        labels = []
    elif len(labels) > MOST_DOMAINS:
        raise UserError(
            f"the texts have {len(labels)} labels, and a figure shows at most"
            f" {MOST_DOMAINS}: give fewer",
            "text",
        )
    groups = {label: [text for text in texts if text.label == label] for label in labels}
    count = sum(-(-len(group) // batch) for group in (texts, *groups.values()))
    with tqdm(total=count, desc="probing", unit="batch", disable=not is_main_process()) as bar:

        def run(texts: Sequence[Text], which: Sequence[Probe], text: str) -> dict:
            batches = _batches(decoder, tokenizer, texts, length, batch, bar)
            return probes.run(decoder, params, _until(stopped, batches), which, text=text)

        datasets = run(texts, [PROBES[name](tokenizer) for name in names], about)
        by_label = {
            label: run(group, [probes.frequency_usage], label)["frequency_usage"]
            for label, group in groups.items()
            if not stopped()
        }
    if "head_patterns" in datasets:
        datasets["head_names"] = probes.name_heads(datasets["head_patterns"])
    maps = []
    page_tokens = min(length, decoder.config.at_most_trained(page_tokens))
    for text in texts[:page_texts]:
        if stopped():
            break
        ids = tokenizer.encode_batch([text.text], page_tokens)[0][0]
        weights = probes.attention_maps(decoder, params, ids, pieces=tokenizer.pieces(ids))
        maps.append(weights.assign_attrs(text=_first_words(text.text)))
    return Measurements(datasets, by_label, maps)


def _batches(
    decoder: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    length: int,
    batch: int,
    bar: tqdm,
) -> Iterator[Batch]:
    """(tokens, weights), short texts first; rows that only fill up have weight 0.

    The lengths are few, as each is compiled: powers of 2, and that of the longest text.
    """
    layout = layout_of(decoder)
    batch = len(layout.fill(min(batch, len(texts))))
    tokens, weights = tokenizer.encode_batch([text.text for text in texts], length)
    lengths = np.count_nonzero(weights, axis=1)
    order = np.argsort(lengths, kind="stable")
    rows = np.resize(order, -(-len(texts) // batch) * batch)
    weights = weights[rows] * (np.arange(len(rows)) < len(texts))[:, None]
    for start in range(0, len(rows), batch):
        in_batch = slice(start, start + batch)
        longest = max(SHORTEST, int(lengths[order[in_batch]].max()))
        columns = min(1 << (longest - 1).bit_length(), tokens.shape[1])
        yield tokens[rows[in_batch], :columns], weights[in_batch, :columns]
        bar.update()


def _until(stopped: Callable[[], bool], batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, of which the first in any case, until something is to stop."""
    for batch in batches:
        yield batch
        if stopped():
            return


def _first_words(text: str, most: int = 40) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most].rsplit(' ', 1)[0]} ..."


# --- files ------------------------------------------------------------------------------------


def write(folder: Path, measured: Measurements, facts: Mapping[str, object]) -> list[Path]:
    """Writes everything into a folder, which is made; returns the paths."""
    written = []
    for name, dataset in measured.datasets.items():
        written.append(folder / f"{name}.nc")
        probes.save(dataset, written[-1])
    for name, figure in draw(measured).items():
        written.append(folder / "figures" / f"{name}.png")
        with atomic(written[-1]) as part:
            figure.savefig(part, dpi=150)
    if all(name in measured.datasets for name in PAGE) and measured.maps:
        written.append(folder / "index.html")
        head_page.write_page(
            written[-1],
            title="rope_study: what the heads do",
            facts=facts,
            usage=measured.datasets["frequency_usage"],
            named=measured.datasets["head_names"],
            maps=measured.maps,
        )
    return written


def draw(measured: Measurements) -> dict[str, Figure]:
    """The figures that what was measured allows, by the names of their files."""
    drawn = {}
    if usage := measured.datasets.get("frequency_usage"):
        last = int(usage.layer[-1])
        drawn["fig_03_norms_by_layer"] = figures.norms_by_layer(usage)
        drawn["fig_04_norms_by_head_first_layer"] = figures.norms_by_head(usage, 0)
        drawn["fig_04_norms_by_head_last_layer"] = figures.norms_by_head(usage, last)
        if np.isfinite(usage.inverse_frequency.values).all():
            drawn["fig_10_slow_bands"] = figures.slow_bands({"model": usage})
        drawn["fig_13_value_norms"] = figures.value_norms(usage)
        if len(measured.by_label) > 1:
            drawn["fig_19_usage_by_domain"] = figures.usage_by_domain(measured.by_label)
    if named := measured.datasets.get("head_names"):
        heads = surest_heads(named)
        drawn["heads_by_kind"] = figures.head_kinds(named)
        if measured.maps:
            maps = {kind: _one_head(measured.maps[0], *at) for kind, at in heads.items()}
            drawn["fig_05_attention_patterns"] = figures.attention_patterns(maps)
        if usage:
            drawn["fig_06_head_usage"] = figures.head_usage(usage, heads)
    return drawn


def surest_heads(named: xarray.Dataset) -> dict[str, tuple[int, int]]:
    """The surest head of each kind that there is: "sink, score 0.93" -> (layer, head).

    Mixed heads, which are of no kind, only where there are no others.
    """
    kinds = [kind for kind in named.kind.values if (named.name == kind).any()]
    heads = {}
    for kind in kinds or ["mixed"]:
        scores = named.score.where(named.name == kind).fillna(-1).values
        layer, head = np.unravel_index(np.argmax(scores), scores.shape)
        heads[f"{kind}, score {scores[layer, head]:.2f}"] = int(layer), int(head)
    return heads


def _one_head(maps: xarray.DataArray, layer: int, head: int) -> xarray.DataArray:
    """Attention of a head on as many tokens as can be read along an axis."""
    shown = slice(MOST_LABELS)
    weights = maps.isel(layer=layer, head=head, query=shown, key=shown, drop=True)
    tokens = f"{weights.sizes['query']} tokens of “{maps.attrs['text']}”"
    return weights.assign_attrs({"layer": layer, "head": head, "text": tokens})


def table(named: xarray.Dataset) -> str:
    """Heads by kind as text: how many, and the surest."""
    lines = [f"{'kind':<10}  heads  surest"]
    for kind in [*named.kind.values, "mixed"]:
        layers, heads = np.nonzero(named.name.values == kind)
        order = np.argsort(-named.score.values[layers, heads])[:4]
        surest = ", ".join(
            f"L{layers[i]}H{heads[i]} ({named.score.values[layers[i], heads[i]]:.2f})"
            for i in order
        )
        lines.append(f"{kind:<10}  {len(layers):>5}  {surest}")
    return "\n".join(lines)
