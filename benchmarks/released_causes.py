r"""What a released model needs of each rotary frequency, by taking its rotation or the pair away.

    python benchmarks/released_causes.py --checkpoint=model.gguf --text=wiki.jsonl \
        --out=results/released/smollm2/wiki

Four parts. `rotation`: loss against how many of the slowest pairs are unrotated, which is p-RoPE
put under the trained weights, and how many of the fastest, on windows of several lengths. `bands`:
eighths of the pairs unrotated, ablated, halved and exchanged, by kind of layer and of head, beside
random pairs of the same norm: loss, and the gain from copying. `heads`: attention of every head
with the fastest and the slowest quarter of its own layer edited. `passkey`: a number said once.
What probes read is written beside them. A folder holds one model on one domain of text. Minutes a
part on one GPU for 0.3B parameters.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray
from released import save_small

from rope_study import checkpoints, data, probes, rotary
from rope_study.data import Tokenizer
from rope_study.data.passkey import Passkeys, passkeys
from rope_study.decoder import Decoder, attention
from rope_study.interventions import (
    Band,
    Intervention,
    ablate,
    band,
    measure,
    permute,
    random_band,
    rescale,
    token_losses,
    unrotate,
)

STEPS = 32  # of unrotated pairs, from none to all
BANDS = 8
PARTS = ["rotation", "bands", "heads", "passkey"]
WINDOW = 512  # tokens, where one length is enough
START = time.perf_counter()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--text", required=True, help="What data.read_documents takes.")
    parser.add_argument("--out", type=Path, required=True, help="A folder: model and domain.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--tokens", type=int, default=200_000, help="Read at each length.")
    parser.add_argument("--batch", type=int, default=8192, help="Tokens at once, or one window.")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--edits", nargs="+", help="Of bands, these alone: 'ablate 0, all layers'.")
    parser.add_argument("--copies", type=int, default=32, help="Of random tokens, with bands.")
    parser.add_argument("--questions", type=int, default=64, help="Of passkey, at each length.")
    parser.add_argument("--passkeys", type=int, nargs="+", default=[512, 2048], help="Lengths.")
    arguments = parser.parse_args()
    decoder, params = checkpoints.load(arguments.checkpoint)
    tokenizer = checkpoints.load_tokenizer(arguments.checkpoint)
    pieces = data.pieces(data.read_documents(arguments.text))
    stream = [tokenizer.encode(piece) for piece in pieces]
    arguments.out.mkdir(parents=True, exist_ok=True)

    def texts(length: int, tokens: int) -> list[Batch]:
        return windows(stream, tokenizer.bos, length, tokens, arguments.batch)

    def save(name: str, dataset: xarray.Dataset) -> None:
        write(arguments.out, Path(arguments.text).name, name, dataset)

    if "rotation" in arguments.parts:
        for length in arguments.lengths:
            batches = texts(length, arguments.tokens)
            save(f"rotation_{length}", rotation(decoder, params, batches))
    if arguments.parts == ["rotation"]:
        return
    datasets = probed(decoder, params, tokenizer, texts(WINDOW, arguments.tokens // 4))
    for name, dataset in datasets.items():
        save(name, dataset)
    if "bands" in arguments.parts:
        batches = texts(WINDOW, arguments.tokens // 8)
        edits = dict(_band_edits(decoder, datasets))
        if unknown := set(arguments.edits or ()) - edits.keys():
            parser.error(f"--edits: {', '.join(unknown)} is none of {', '.join(edits)}")
        if arguments.edits:
            edits = {name: edits[name] for name in arguments.edits}
        copies = {"copies": arguments.copies, "copy_length": 64}
        measured = measure(decoder, params, batches, edits, attention=False, **copies)
        save("bands", measured)
    if "heads" in arguments.parts:
        batches = texts(WINDOW, arguments.tokens // 24)
        save("heads", by_head(decoder, params, batches, datasets))
    if "passkey" in arguments.parts:
        for length in arguments.passkeys:
            questions = passkeys(tokenizer, length, count=arguments.questions)
            save(
                f"passkey_{length}",
                passkey(decoder, params, questions, datasets, arguments.batch),
            )


def write(folder: Path, text: str, name: str, dataset: xarray.Dataset) -> None:
    """A small NetCDF file with where and on what it was measured; losses are printed as well."""
    facts = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "text": text}
    save_small(dataset.assign_attrs(facts), folder / f"{name}.nc")
    print(f"{name}.nc at {time.perf_counter() - START:.0f} s", flush=True)
    if "loss" in dataset:
        show(dataset, name)


Batch = tuple[np.ndarray, np.ndarray]


def windows(
    documents: list[np.ndarray], bos: int | None, length: int, tokens: int, batch: int
) -> list[Batch]:
    """Consecutive windows of `length` tokens, the first of them BOS where the model has one."""
    start = np.array([] if bos is None else [bos], int)
    stream = np.concatenate(documents)
    size = length - len(start)
    count = min(max(tokens // length, 1), len(stream) // size)
    rows = np.stack([
        np.concatenate([start, stream[i * size : (i + 1) * size]]) for i in range(count)
    ]).astype(np.int32)  # fmt: skip
    together = min(max(batch // length, 1), len(rows))
    whole = rows[: len(rows) // together * together].reshape(-1, together, length)
    return [(rows, np.ones(rows.shape, np.float32)) for rows in whole]


def layer_kinds(decoder: Decoder) -> dict[str, list[int]]:
    """Which layers are local and which global, where there are both; all of them first."""
    specs = decoder.config.layer_specs
    kinds = {"all": list(range(len(specs)))}
    local = [i for i, spec in enumerate(specs) if spec.window is not None]
    if 0 < len(local) < len(specs):
        kinds |= {"local": local, "global": sorted(set(kinds["all"]) - set(local))}
    return kinds


def rotation(decoder: Decoder, params: dict, texts: list[Batch]) -> xarray.Dataset:
    """Losses with so many pairs unrotated, the slowest or the fastest, by kind of layer."""
    pairs = decoder.config.head_dim // 2
    counts = [round(pairs * step / STEPS) for step in range(1, STEPS + 1)]
    edits: dict[str, Intervention] = {}
    for kind, layers in layer_kinds(decoder).items():
        for count in counts if kind == "all" else counts[1::2]:
            slowest = band(indices=range(pairs - count, pairs))
            edits[f"{kind} slowest {count}"] = unrotate(slowest, layers=layers)
    for count in (max(pairs // 32, 1), pairs // 16, pairs // 8):
        edits[f"all fastest {count}"] = unrotate(band(indices=range(count)))
    return measure(decoder, params, texts, edits, attention=False, copies=0)


def probed(
    decoder: Decoder, params: dict, tokenizer: Tokenizer, texts: list[Batch]
) -> dict[str, xarray.Dataset]:
    """What reads without intervening, and the names of heads."""
    wanted = [
        probes.frequency_usage,
        probes.head_patterns(tokenizer=tokenizer),
        probes.massive_values(),
        probes.rotary_outliers(),
        probes.sinks(),
    ]
    datasets = probes.run(decoder, params, texts, wanted)
    return datasets | {"head_names": probes.name_heads(datasets["head_patterns"])}


def _band_edits(
    decoder: Decoder, datasets: Mapping[str, xarray.Dataset]
) -> Iterator[tuple[str, Intervention]]:
    """Every eighth of the pairs edited, by kind of layer and of head, and controls of its norm."""
    usage, names = datasets["frequency_usage"], datasets["head_names"].name.values
    eighths = np.array_split(np.arange(decoder.config.head_dim // 2), BANDS)
    groups = {str(kind): np.argwhere(names == kind) for kind in np.unique(names)}
    for i, members in enumerate(eighths):
        eighth = band(indices=members)
        for kind, layers in layer_kinds(decoder).items():
            yield f"unrotate {i}, {kind} layers", unrotate(eighth, layers=layers)
            yield f"ablate {i}, {kind} layers", ablate(eighth, layers=layers)
        control = random_band(usage, eighth, seed=0)
        yield f"ablate random as {i}", ablate(control)
        shared = random_band(usage, eighth, seed=0, by_key_head=True)
        yield f"unrotate random as {i}", unrotate(shared)
        yield f"rescale {i}", rescale(eighth, 0.5)
        yield f"rescale random as {i}", rescale(control, 0.5)
        for kind, heads in groups.items():
            yield f"ablate {i}, {kind} heads", ablate(eighth.in_heads(f"{kind} heads", heads))
    for i in range(BANDS // 2):
        mirrored = np.concatenate([eighths[i], eighths[-1 - i]])
        yield f"exchange {i} and {BANDS - 1 - i}", permute(band(indices=mirrored))
    massive = massive_band(datasets["massive_values"])
    if massive is not None:
        yield "ablate massive", ablate(massive)
        yield "ablate random as massive", ablate(random_band(usage, massive, seed=0))


def massive_band(massive: xarray.Dataset) -> Band | None:
    """The pairs of each head with a massive dimension in its query or key; None without any."""
    is_massive = {}
    for name in "qk":
        of_dimension = massive[f"{name}_massive_by_head"].values  # [layer, head, dimension]
        is_massive[name] = np.logical_or(*rotary.pairs(of_dimension))
    key_heads = attention.key_heads(is_massive["q"].shape[1], is_massive["k"].shape[1])
    pairs = is_massive["q"] | is_massive["k"][:, key_heads]
    if not pairs.any():
        return None
    return Band("massive", lambda frequencies, layer, head: np.flatnonzero(pairs[layer, head]))


def by_head(
    decoder: Decoder, params: dict, texts: list[Batch], datasets: Mapping[str, xarray.Dataset]
) -> xarray.Dataset:
    """Attention of every head with a band of its own layer edited, all other layers as they are."""
    quarter = {"fast": band(fastest=0.25), "slow": band(slowest=0.25)}
    edits = {}
    for name, members in quarter.items():
        control = random_band(datasets["frequency_usage"], members, seed=0)
        edits[f"unrotate {name}"] = unrotate, members
        edits[f"ablate {name}"] = ablate, members
        edits[f"ablate random as {name}"] = ablate, control
    layers = range(decoder.config.layers)
    chains = {f"{name} {i}": make(members, layers=i)
              for name, (make, members) in edits.items() for i in layers}  # fmt: skip
    measured = measure(decoder, params, texts, chains, copies=0)

    def own_layer(values: xarray.DataArray, name: str) -> np.ndarray:
        """[layer, head] where an edit acted on that layer alone."""
        rows = [values.sel(intervention=f"{name} {i}", layer=i) for i in layers]
        return np.stack([row.values for row in rows])

    variables = {
        key: (
            ("intervention", "layer", "head"),
            np.stack([
                values.sel(intervention="plain").values,
                *(own_layer(values, name) for name in edits),
            ]),
            values.attrs,
        )
        for key, values in measured.data_vars.items()
        if "layer" in values.dims
    }  # fmt: skip
    names = np.array(["plain", *edits], object)
    attributes = {key: value for key, value in measured.attrs.items() if key != "copies"}
    return xarray.Dataset(variables, {"intervention": names}, attributes).assign(
        kind=datasets["head_names"].name
    )


def passkey(
    decoder: Decoder,
    params: dict,
    questions: Passkeys,
    datasets: Mapping[str, xarray.Dataset],
    batch: int,
) -> xarray.Dataset:
    """Which questions are answered, and the loss of the right answers, by intervention."""
    pairs = decoder.config.head_dim // 2
    edits: dict[str, Any] = {"plain": ()}
    for p in (0.9, 0.75, 0.5, 0.25, 0):
        edits[f"{p}-RoPE"] = unrotate(band(indices=range(int(p * pairs), pairs)))
    edits |= {
        name: edit
        for name, edit in _band_edits(decoder, datasets)
        if "heads" not in name and "rescale" not in name and "exchange" not in name
    }
    _, candidates, length = questions.tokens.shape
    rows = questions.tokens.reshape(-1, max(batch // length, 1), length)
    losses = token_losses(decoder, params, rows, edits)
    answers = np.stack([questions.answer_losses(of) for of in losses.values()])
    dims = ("intervention", "question")
    return xarray.Dataset(
        {
            "right": (dims, np.stack([questions.right(of) for of in losses.values()])),
            "answer_loss": (dims, answers[:, :, 0], {"units": "nats/token"}),
        },
        {"intervention": np.array(list(edits), object), "depth": ("question", questions.depths)},
        {"length": length, "candidates": candidates},
    )


def show(measured: xarray.Dataset, title: str) -> None:
    """Prints losses, and what is not an array as one line of JSON."""
    print(f"\n{title}: {json.dumps({k: measured.attrs[k] for k in ('model', 'tokens', 'texts')})}")
    print(f"{'intervention':<24} {'loss':>8} {'difference':>11} {'s.e.':>8}")
    for name in measured.intervention.values:
        row = measured.sel(intervention=name)
        print(
            f"{name:<24} {float(row.loss):8.4f} {float(row.loss_difference):+11.4f}"
            f" {float(row.loss_difference_se):8.4f}"
        )


if __name__ == "__main__":
    main()
