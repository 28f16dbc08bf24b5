"""Tables of docs/released_models.md on single heads, the first token and domains of text.

From the files of released_heads.py and released_causes.py alone; released_tables.py prints these
with its own, and reads the same folders.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray

from rope_study.decoder import attention

RESULTS = Path(__file__).parents[1] / "results" / "released"
MODELS = {"smollm2": "SmolLM2", "gemma3": "Gemma 3"}
WIKI = "wiki"  # the text, unless a table says otherwise
DOMAINS = {
    WIKI: "Wikipedia",
    "instructions": "instructions",
    "english": "handbook, English",
    "german": "handbook, German",
    "chinese": "handbook, Chinese",
    "code": "Python",
}
WINDOW_LAYERS = 5  # of Gemma 3's six layers in a row are local
OWN_KEY = {"diagonal": "own", "previous": "previous"}  # of heads by kind
Table = tuple[list[str], list[list[str]]]


def dataset(model: str, name: str, domain: str = WIKI) -> xarray.Dataset:
    """One of the files of a model."""
    return xarray.load_dataset(RESULTS / model / domain / f"{name}.nc")


def quarters(by_pair: np.ndarray) -> list[float]:
    """Sums over the fastest to the slowest quarter of the pairs."""
    return by_pair.reshape(4, -1).sum(axis=1).tolist()


def layer_kinds(model: str, layers: int) -> dict[str, np.ndarray]:
    """Title of a kind of layers, and which these are."""
    if model != "gemma3":
        return {MODELS[model]: np.arange(layers)}
    is_global = np.arange(layers) % (WINDOW_LAYERS + 1) == WINDOW_LAYERS
    return {
        f"{MODELS[model]}, local": np.flatnonzero(~is_global),
        f"{MODELS[model]}, global": np.flatnonzero(is_global),
    }


def norms_by_kind() -> Table:
    """Fig. 6 over all heads of a kind: shares of |q||k| of the quarters of the pairs."""
    head = ["heads", *(f"quarter {i}" for i in range(4))]
    rows = []
    for model, title in MODELS.items():
        names, usage = dataset(model, "head_names").name.values, dataset(model, "frequency_usage")
        by_head = attention.key_heads(usage.sizes["head"], usage.sizes["kv_head"])
        products = usage.q.values * usage.k.values[:, by_head]
        shares = products / products.sum(axis=-1, keepdims=True)
        for kind in np.unique(names):
            of_kind = names == kind
            parts = [f"{part:.2f}" for part in quarters(shares[of_kind].mean(axis=0))]
            rows.append([f"{title}, {kind} ({of_kind.sum()})", *parts])
    return head, rows


def positional_logits() -> Table:
    """Tables 3 to 5: logits of positional heads on what they attend to, beside the bound."""
    head = ["head", "logit", "bound", "share", "on others"]
    head += [f"quarter {i}" for i in range(4)]
    rows = []
    for model in MODELS:
        logits, names = dataset(model, "logits"), dataset(model, "head_names").name.values
        scale = logits.head_dim**-0.5
        for kind, key in OWN_KEY.items():
            for layer, number in np.argwhere(names == kind):
                of_head = logits.isel(layer=layer, head=number) * scale
                there, others = of_head.sel(key=key), of_head.contribution.sel(key="others")
                logit, bound = float(there.contribution.sum()), float(there.bound.sum())
                rows.append([
                    f"{MODELS[model]}, L{layer}H{number}, {kind}",
                    f"{logit:.1f}", f"{bound:.1f}", f"{logit / bound:.2f}",
                    f"{float(others.sum()):.1f}",
                    *(f"{part:+.1f}" for part in quarters((there.contribution - others).values)),
                ])  # fmt: skip
    return head, rows


def sink_logits() -> Table:
    """Fig. 7 over all sinks: what quarters of the pairs add on the first token, and on others."""
    head = ["layers", "sinks", "on", *(f"quarter {i}" for i in range(4)), "in all"]
    rows = []
    for model in MODELS:
        logits, names = dataset(model, "logits"), dataset(model, "head_names").name.values
        scaled = logits.contribution * logits.head_dim**-0.5
        for title, layers in layer_kinds(model, len(names)).items():
            places = [at for at in np.argwhere(names == "sink") if at[0] in layers]
            for key, what in (("first", "first token"), ("others", "others")):
                of_key = scaled.sel(key=key).values
                added = np.mean([of_key[layer, number] for layer, number in places], axis=0)
                parts = [f"{part:+.1f}" for part in quarters(added)]
                rows.append([title, str(len(places)), what, *parts, f"{added.sum():+.1f}"])
    return head, rows


def first_tokens() -> Table:
    """Attention on the first token, and the loss of the rest, by what stands there."""
    head = [
        "model, first token",
        "mean attention",
        "sinks above 0.3",
        "above 0.8",
        "loss of the rest",
    ]
    rows = []
    for model, title in MODELS.items():
        measured = dataset(model, "first_token")
        for what in measured["first"].values:
            of = measured.sel(first=what)
            rates = [f"{float(rate):.3f}" for rate in of.sink_rate]
            rows.append([
                f"{title}, {what}", f"{float(of.alpha.mean()):.3f}", *rates,
                f"{float(of.later_loss):.3f}",
            ])  # fmt: skip
    return head, rows


def reach() -> Table:
    """How far the residual stream of later tokens moves, with the first token and without."""
    layers = [0.25, 0.5, 0.75, 1.0]
    head = ["model, first token", *(f"after {share:.0%} of layers" for share in layers)]
    rows = []
    for model, title in MODELS.items():
        measured = dataset(model, "first_token")
        later = measured.reach.sel(position=slice(measured.place + 1, None)).mean("position")
        for bos, what in (("with", "as it is"), ("without", "left out")):
            by_layer = later.sel(bos=bos).values
            values = [by_layer[round(share * len(by_layer)) - 1] for share in layers]
            rows.append([f"{title}, {what}", *(f"{value:.3f}" for value in values)])
    return head, rows


def measured_domains(model: str, name: str) -> Iterator[tuple[str, str]]:
    """The domains in which there is that file of a model, and their titles."""
    for domain, title in DOMAINS.items():
        if (RESULTS / model / domain / f"{name}.nc").exists():
            yield domain, title


def usage_by_domain(model: str) -> dict[str, xarray.Dataset]:
    """Fig. 19: frequency usage by title of the domain."""
    domains = measured_domains(model, "frequency_usage")
    return {title: dataset(model, "frequency_usage", domain) for domain, title in domains}


def norms_by_domain() -> Table:
    """Fig. 19 in numbers: correlation of norms with those on Wikipedia, over heads and pairs."""
    head = ["layers, text", "queries", "keys", "values"]
    rows = []
    for model in MODELS:
        usages = usage_by_domain(model)
        wiki = usages.pop(DOMAINS[WIKI])
        for title, layers in layer_kinds(model, wiki.sizes["layer"]).items():
            for text, usage in usages.items():
                pairs = [
                    [of[name][layers].values.ravel() for of in (wiki, usage)] for name in "qkv"
                ]
                rows.append([f"{title}, {text}", *(f"{np.corrcoef(*p)[0, 1]:.3f}" for p in pairs)])
    return head, rows


def by_domain() -> Table:
    """What differs from text to text: loss, the fastest and slowest eighths, sinks and outliers."""
    edits = {
        "fastest unrotated": "unrotate 0, all layers",
        "slowest unrotated": "unrotate 7, all layers",
        "fastest to zero": "ablate 0, all layers",
        "slowest to zero": "ablate 7, all layers",
        "eighth 4 unrotated": "unrotate 4, all layers",
    }
    head = ["model, text", "loss", *edits, "sinks above 0.3", "outliers of q within a turn", "of k"]
    rows = []
    for model, title in MODELS.items():
        for domain, text in measured_domains(model, "bands"):
            bands = dataset(model, "bands", domain)
            outliers = dataset(model, "rotary_outliers", domain)
            differences = bands.loss_difference.sel(intervention=list(edits.values())).values
            rows.append([
                f"{title}, {text}",
                f"{float(bands.loss.sel(intervention='plain')):.2f}",
                *(f"{difference:+.3f}" for difference in differences),
                f"{float(dataset(model, 'sinks', domain).sink_rate[0]):.3f}",
                *(f"{float(outliers[f'{name}_outliers_within']):.3f}" for name in "qk"),
            ])  # fmt: skip
    return head, rows


TABLES = {
    "Norms by kind of head": norms_by_kind,
    "Logits of positional heads": positional_logits,
    "Logits of sinks": sink_logits,
    "First tokens": first_tokens,
    "Reach of a changed token": reach,
    "Norms by domain": norms_by_domain,
    "Domains": by_domain,
}
