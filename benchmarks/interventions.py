"""Does editing rotary pairs of a trained decoder do what the norms of its pairs suggest?

    python benchmarks/interventions.py --checkpoint=stories260K.bin

The texts are the decoder's own, sampled at temperature 1, up to where it ends a text. Three
tables: pairs edited in all heads at once; pairs ablated in one layer at a time, and what becomes
of every head of that layer, whose input is then as before; and that by kind of head. Beside each
pair that is ablated stands a control of the same norm: all other pairs of each head shrunk by one
factor, so that as much of its sum of mean |q^(k)| |k^(k)| goes as with the pair (rescale, on q).
Where a pair has more than all others together there is no such control.
"""

import argparse
import itertools

import numpy as np
import xarray

from rope_study import checkpoints, probes
from rope_study.decoder import sampling
from rope_study.interventions import (
    Intervention,
    ablate,
    band,
    band_share,
    measure,
    permute,
    random_band,
    rescale,
    unrotate,
)


def sample(decoder, params, bos: int, rows: int, length: int, seed: int):
    """(tokens int32[rows, length], weights): texts of the decoder's own, each up to its end."""
    start = np.full((rows, 1), bos)
    rows_of_ids = sampling.generate_tokens(
        decoder, params, start, tokens=length - 1, temperature=1.0, seed=seed
    )
    tokens = np.stack(rows_of_ids).astype(np.int32)
    return tokens, (np.cumsum(tokens == bos, axis=1) <= 1).astype(np.float32)


def shrink_others(usage: xarray.Dataset, pair: int) -> list[Intervention]:
    """As much norm taken from a head's other pairs, by one factor, as the pair has."""
    shares = band_share(usage, band(indices=pair)).to_numpy()
    others = band(indices=[i for i in range(usage.sizes["pair"]) if i != pair])
    return [
        rescale(others, 1 - share / (1 - share), layers=layer, heads=head)
        for (layer, head), share in np.ndenumerate(shares)
        if share < 0.5  # the others do not have more to give
    ]


def everywhere(usage: xarray.Dataset) -> dict:
    """Edits of all heads of all layers at once."""
    P = usage.sizes["pair"]
    half = {"fast half": band(fastest=0.5), "slow half": band(slowest=0.5)}
    random = {i: random_band(usage, band(indices=i)) for i in (0, 1)}
    shares = [band_share(usage, band(indices=i)) for i in range(P)]
    edits = {f"ablate pair {i}": ablate(band(indices=i)) for i in range(P)}
    edits |= {f"ablate {name}": ablate(pairs) for name, pairs in half.items()}
    edits |= {f"ablate random as pair {i}": ablate(pairs) for i, pairs in random.items()}
    edits |= {
        f"shrink all but {i}": shrink_others(usage, i) for i in range(P) if shares[i].max() < 0.5
    }
    edits |= {f"unrotate pair {i}": unrotate(band(indices=i)) for i in range(P)}
    edits |= {f"unrotate {name}": unrotate(pairs) for name, pairs in half.items()}
    edits |= {"unrotate all": unrotate(band(fastest=1.0))}
    edits |= {"reverse all": permute(band(fastest=1.0))}
    edits |= {f"swap {i} and {i + 1}": permute(band(indices=(i, i + 1))) for i in range(P - 1)}
    return edits


def norm_taken(usage: xarray.Dataset, name: str, interventions: dict) -> float:
    """The mean over heads of the share of norm that goes; NaN where nothing is taken."""
    if name.startswith("shrink"):
        return float(band_share(usage, band(indices=int(name.split()[-1]))).mean())
    if name.startswith("ablate"):
        return float(band_share(usage, interventions[name].band).mean())
    return np.nan


def table_everywhere(usage, interventions: dict, effects: xarray.Dataset) -> None:
    """Prints the table of all heads at once."""
    print(
        f"\n{'all heads at once':24} {'norm taken':>10} {'loss':>7} {'difference +- s.e.':>19}"
        f" {'TV':>6} {'previous':>8} {'copy gain':>9} {'difference +- s.e.':>19}"
    )
    for name in effects.intervention.values:
        row = effects.sel(intervention=name)
        share = np.nan if name == "plain" else norm_taken(usage, name, interventions)
        print(
            f"{name:24} {'' if np.isnan(share) else f'{share:10.3f}':>10} {row.loss:7.3f}"
            f" {row.loss_difference:+10.3f} +- {row.loss_difference_se:5.3f}"
            f" {row.total_variation.mean():6.3f} {row.previous.mean():8.3f} {row.copy_gain:9.3f}"
            f" {row.copy_gain_difference:+10.3f} +- {row.copy_gain_difference_se:5.3f}"
        )


def by_layer(usage: xarray.Dataset) -> dict:
    """Every pair, and its control, in one layer at a time: {(kind, layer, pair): interventions}."""
    edits = {}
    for layer, i in itertools.product(range(usage.sizes["layer"]), range(usage.sizes["pair"])):
        edits["ablate", layer, i] = ablate(band(indices=i), layers=layer)
        control = [edit for edit in shrink_others(usage, i) if edit.layers == (layer,)]
        if len(control) == usage.sizes["head"]:
            edits["shrink", layer, i] = control
    return edits


def one_layer(decoder, params, batch, usage) -> dict[str, np.ndarray]:
    """[L, N, P] of every head and pair: what its own layer's edit does to it, NaN where none."""
    edits = by_layer(usage)
    by_name = {f"{kind} {layer} {pair}": edit for (kind, layer, pair), edit in edits.items()}
    effects = measure(decoder, params, [batch], by_name, copies=0)
    shape = usage.sizes["layer"], usage.sizes["head"], usage.sizes["pair"]
    names = [f"{kind} {what}" for kind in ("ablate", "shrink") for what in ("moved", "lost")]
    numbers = {name: np.full(shape, np.nan) for name in names}
    plain = effects.sel(intervention="plain")

    def position(row: xarray.Dataset) -> np.ndarray:
        return (row.previous + row.diagonal).to_numpy()

    for kind, layer, pair in edits:
        row = effects.sel(intervention=f"{kind} {layer} {pair}")
        numbers[f"{kind} moved"][layer, :, pair] = row.total_variation[layer]
        numbers[f"{kind} lost"][layer, :, pair] = (position(plain) - position(row))[layer]
    shares = [band_share(usage, band(indices=i)).to_numpy() for i in range(shape[2])]
    return numbers | {
        "share": np.stack(shares, axis=-1),
        "previous": plain.previous.to_numpy(),
        "diagonal": plain.diagonal.to_numpy(),
        "loss": effects.loss_difference.to_numpy(),
        "loss_se": effects.loss_difference_se.to_numpy(),
        "edits": list(edits),
    }


def spread(values, form: str = "5.2f") -> str:
    """Numbers of one head by pair."""
    width = int(form.lstrip("+").split(".")[0])
    return " ".join(f"{'-':>{width}}" if np.isnan(v) else f"{v:{form}}" for v in values)


def table_heads(n: dict) -> None:
    """Prints every head: its norms, and what ablating each pair in its layer does to it."""
    L, N, P = n["share"].shape
    width = 6 * P - 1
    print(
        f"\n{'head':6} {'prev':>5} {'diag':>5}  {'norm share by pair':{width}}"
        f"  {'ablated: TV by pair':{width}}  {'ablated: prev + diag lost':{width}}"
    )
    for layer, head in np.ndindex(L, N):
        at = layer, head
        by_pair = [spread(n[name][at]) for name in ("share", "ablate moved", "ablate lost")]
        print(
            f"L{layer}H{head:<3} {n['previous'][at]:5.2f} {n['diagonal'][at]:5.2f}  "
            + "  ".join(by_pair)
        )


def table_kinds(n: dict) -> None:
    """Prints means over heads that go by position, and over the others."""
    position = n["previous"] + n["diagonal"]
    P = n["share"].shape[2]
    print("\nmeans over heads        " + "".join(f"{f'pair {i}':>8}" for i in range(P)))
    for label, chosen in (("prev + diag >= 0.5", position >= 0.5), ("below 0.5", position < 0.5)):
        print(f"{label}: {int(chosen.sum())} heads")
        for name in ("share", "ablate moved", "shrink moved", "ablate lost", "shrink lost"):
            print(f"  {name:22}" + spread(n[name][chosen].mean(axis=0), "7.3f"))
    print("\nrank correlation over heads of prev + diag with")
    for name in ("share", "ablate moved", "ablate lost"):
        ranks = [correlation(position.ravel(), n[name][..., i].ravel()) for i in range(P)]
        print(f"  {name:22}" + spread(ranks, "+7.2f"))
    flat = n["share"].ravel(), n["ablate moved"].ravel()
    print(f"rank correlation over heads and pairs of share with TV: {correlation(*flat):+.2f}")
    print("\nloss difference +- s.e. of edits of one layer")
    for edit, mean, error in zip(n["edits"], n["loss"][1:], n["loss_se"][1:], strict=True):
        print(f"  {edit[0]:6} layer {edit[1]} pair {edit[2]}: {mean:+.4f} +- {error:.4f}")


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, without ties."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def main() -> None:
    """Prints the tables of one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    decoder, params = checkpoints.load(args.checkpoint, mesh="fsdp=1")
    bos = checkpoints.load_tokenizer(args.checkpoint).required_bos()
    batch = sample(decoder, params, bos, args.rows, args.length, args.seed)
    usage = probes.run(decoder, params, [batch], [probes.frequency_usage])["frequency_usage"]
    interventions = everywhere(usage)
    effects = measure(decoder, params, [batch], interventions)
    source = f"{effects.texts} texts, {effects.tokens} tokens, context {effects.context}"
    print(f"{effects.model}: {source}")
    frequencies = usage["inverse_frequency"].to_numpy()[0]
    print(f"frequencies of the pairs: {', '.join(f'{g:g}' for g in frequencies)} rad/token")
    table_everywhere(usage, interventions, effects)
    numbers = one_layer(decoder, params, batch, usage)
    table_heads(numbers)
    table_kinds(numbers)


if __name__ == "__main__":
    main()
