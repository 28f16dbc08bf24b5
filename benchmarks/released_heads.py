r"""Single heads of a released model, pair by pair, and its first token: two CPU minutes a model.

    python benchmarks/released_heads.py --checkpoint=model.gguf --text=wiki.jsonl \
        --out=results/released/smollm2/wiki

The heads are the surest of each kind, of local and of global layers apart; their names, and norms,
are those that released_causes.py wrote into the folder. Written beside them: attention on the
beginning of the text and norms by pair (Figs. 5 and 6), attention and logits by band (Fig. 7), one
logit by pair (Tables 3 to 5), and as NetCDF `logits`, what every pair of every head adds to logits
on its own token, the one before, the first and others, beside the bounds, and `first_token`, what
becomes of attention and loss with another first token, and how far a changed token reaches.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray
from released_causes import Batch, layer_kinds, windows, write

from rope_study import checkpoints, data, figures, probes, rotary
from rope_study.decoder import Decoder, DecoderConfig
from rope_study.figures.attention import MOST_LABELS
from rope_study.probes import datasets
from rope_study.probes.run import sum_tokens
from rope_study.reports.model import surest_heads
from rope_study.training.evaluate import evaluate

LENGTH = 256  # tokens of a text; below the window of Gemma 3's local layers
SPREAD_LENGTH, SPREAD_PLACE = 64, 16
KEYS = ["own", "previous", "first", "others"]  # of a query from the third on
BANDS = {"fast": slice(0, 1), "middle": slice(1, 3), "slow": slice(3, 4)}  # quarters of the pairs
PARTS = ["logits", "first_token", "figures"]
BY_BAND = 24  # tokens that can be read along the axes of Fig. 7
DPI = 60


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--text", required=True, help="What data.read_documents takes.")
    parser.add_argument("--out", type=Path, required=True, help="A folder with head_names.nc.")
    parser.add_argument("--texts", type=int, default=16, help=f"Of {LENGTH} tokens each.")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    arguments = parser.parse_args()
    named, usage = (
        xarray.load_dataset(arguments.out / f"{name}.nc")
        for name in ("head_names", "frequency_usage")
    )
    decoder, params = checkpoints.load(arguments.checkpoint)
    tokenizer = checkpoints.load_tokenizer(arguments.checkpoint)
    pieces = data.pieces(data.read_documents(arguments.text))
    stream = [tokenizer.encode(piece) for piece in pieces[: 4 * arguments.texts]]
    batches = windows(stream, tokenizer.bos, LENGTH, LENGTH * arguments.texts, 8 * LENGTH)
    text = Path(arguments.text).name
    if "logits" in arguments.parts:
        logits = probes.run(decoder, params, batches, [LOGITS], text=text)["logits"]
        write(arguments.out, text, "logits", logits)
    if "first_token" in arguments.parts:
        write(arguments.out, text, "first_token", first_token(decoder, params, batches))
    if "figures" in arguments.parts:
        ids = batches[0][0][0, :MOST_LABELS]
        heads = chosen_heads(decoder, named)
        drawn = {"fig_06_head_usage": figures.head_usage(usage, heads)}
        drawn |= draw(decoder, params, ids, tokenizer.pieces(ids), heads, text)
        for name, figure in drawn.items():
            figure.savefig(arguments.out / f"{name}.png", dpi=DPI)


# --- logits by pair ---------------------------------------------------------------------------


def _measure_logits(activations: Mapping[str, Any], weights: Any) -> dict[str, Any]:
    """Sums over queries, f32[N, H/2] of every kind of key, and how many queries there were."""
    q, k = (activations[name].astype(jnp.float32) for name in ("q_rotated", "k_rotated"))
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    (q1, q2), (k1, k2) = rotary.pairs(q), rotary.pairs(k)
    places = jnp.arange(q.shape[1])
    counted = weights * (places >= 2)

    def by_key(x: Any) -> dict[str, Any]:
        """x[B, T, N, H/2] of the key at which each query looks; a mean over the others."""
        between = (jnp.cumsum(x, axis=1) - x[:, :1] - x) / jnp.maximum(places - 1, 1)[:, None, None]
        first = jnp.broadcast_to(x[:, :1], x.shape)
        return dict(zip(KEYS, (x, jnp.roll(x, 1, axis=1), first, between), strict=True))

    keys, norms = (by_key(k1), by_key(k2)), by_key(jnp.hypot(k1, k2))
    sums = {"queries": jnp.sum(counted)}
    for name in KEYS:
        added = q1 * keys[0][name] + q2 * keys[1][name]
        sums[name] = sum_tokens(added, counted)
        sums[f"{name} bound"] = sum_tokens(jnp.hypot(q1, q2) * norms[name], counted)
    return sums


def _logits_by_pair(layers: list[dict], context: int, config: DecoderConfig) -> xarray.Dataset:
    """`contribution` and `bound` [key, layer, head, pair], means over queries."""
    dims = ("key", *datasets.BY_HEAD, "pair")
    variables = {
        "contribution": (KEYS, "what the pair adds to q.k"),
        "bound": ([f"{name} bound" for name in KEYS], "2-norms of the pairs multiplied"),
    }
    values = {
        name: (
            dims,
            np.stack([[layer[key] / layer["queries"] for layer in layers] for key in keys]),
            datasets.attributes(long_name),
        )
        for name, (keys, long_name) in variables.items()
    }
    scales = {"head_dim": config.head_dim}
    coordinates = datasets.frequency_coordinates(config, context)
    return xarray.Dataset(values, {"key": np.array(KEYS, object)} | coordinates, scales)


LOGITS = probes.Probe("logits", ("q_rotated", "k_rotated"), _measure_logits, _logits_by_pair)


# --- the first token --------------------------------------------------------------------------


def first_token(decoder: Decoder, params: dict, batches: list[Batch]) -> xarray.Dataset:
    """Attention on the first token and the loss of the rest, by what stands there; and the reach of
    a token that is replaced, with the first and without (Barbero et al., 2504.02732).

    `first` is "as it is", which is BOS where the model has one, "replaced" by a token of the texts,
    and "left out". Losses are of the same tokens, from the third of the text as it is on.
    """
    free = Decoder(dataclasses.replace(decoder.config, bos=None), decoder.layout)
    random = np.random.default_rng(0)
    every = np.concatenate([tokens for tokens, _ in batches])
    others = random.choice(every[:, 1:].ravel(), (2, len(every)))
    replaced = np.concatenate([others[0][:, None], every[:, 1:]], axis=1)
    variants = {"as it is": every, "replaced": replaced, "left out": every[:, 1:]}
    losses, sinks = [], []
    for tokens in variants.values():
        parts = np.split(tokens, len(batches))
        texts = [(part, np.ones(part.shape, np.float32)) for part in parts]
        sinks.append(probes.run(free, params, texts, [probes.sinks()])["sinks"])
        scored = evaluate(free, params, [(part, np.ones(len(part))) for part in parts]).losses
        losses.append(scored[:, -(every.shape[1] - 2) :].mean())
    names = xarray.Variable("first", np.array(list(variants), object))
    measured = xarray.concat([of[["alpha", "sink_rate"]] for of in sinks], names)
    measured["later_loss"] = "first", np.array(losses), {"units": "nats/token"}
    spread = [
        probes.perturbation_spread(
            free, params, text[:SPREAD_LENGTH], SPREAD_PLACE, int(replacement)
        ).relative
        for text, replacement in zip(every, others[1], strict=True)
        if text[SPREAD_PLACE] != replacement
    ]
    by_text = xarray.concat(spread, "text")
    measured["reach"] = by_text.mean("text", keep_attrs=True)
    measured["reach_se"] = by_text.std("text", ddof=1) / len(spread) ** 0.5
    facts = {"place": SPREAD_PLACE, "texts": len(every), "model": sinks[0].attrs["model"]}
    return measured.assign_attrs(facts)


# --- figures ----------------------------------------------------------------------------------


def chosen_heads(decoder: Decoder, named: xarray.Dataset) -> dict[str, tuple[int, int]]:
    """The surest head of each kind, of local and global layers apart where there are both."""
    kinds = layer_kinds(decoder)
    if len(kinds) == 1:
        return surest_heads(named)
    heads = {}
    for kind in ("local", "global"):
        of_kind = named.assign(name=named.name.where(named.layer.isin(kinds[kind]), ""))
        heads |= {f"{kind}: {label}": place for label, place in surest_heads(of_kind).items()}
    return heads


def draw(
    decoder: Decoder,
    params: dict,
    ids: np.ndarray,
    pieces: list[str],
    heads: Mapping[str, tuple[int, int]],
    text: str,
) -> dict[str, Any]:
    """What heads do on the beginning of a text, by the names of files."""
    maps = {
        label: probes.attention_map(decoder, params, ids, *place, pieces=pieces).assign_attrs(
            text=f"{len(ids)} tokens of {text}"
        )
        for label, place in heads.items()
    }
    drawn: dict[str, Any] = {"fig_05_attention_patterns": figures.attention_patterns(maps)}
    quarter = decoder.config.head_dim // 8
    bands = {
        f"{name} pairs": list(range(quarter * part.start, quarter * part.stop))
        for name, part in BANDS.items()
    }
    short = slice(BY_BAND)
    for label, place in heads.items():
        kind = label.split(",")[0].replace(": ", "_")
        if not kind.endswith(("sink", "delimiter", "previous", "diagonal")):
            continue
        added = probes.contribution_map(decoder, params, ids, *place, pieces=pieces)
        attention, logits = (of.isel(query=short, key=short) for of in (maps[label], added))
        attention = attention.assign_attrs(text=f"{BY_BAND} tokens of {text}")
        drawn[f"fig_07_{kind}"] = figures.attention_by_band(attention, logits, bands)
        if kind.endswith("sink"):
            drawn[f"fig_07_first_token_{kind}"] = figures.first_token_by_pair(added)
        if kind.endswith(("previous", "diagonal")):
            query = len(ids) // 2
            at = {"query": query, "key": query - kind.endswith("previous")}
            logit = probes.contributions(decoder, params, ids, *place, **at, pieces=pieces)
            drawn[f"tables_3_to_5_{kind}"] = figures.logit_by_pair(logit)
    return drawn


if __name__ == "__main__":
    main()
