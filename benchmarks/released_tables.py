"""The tables and figures of docs/released_models.md, from the files in results/released alone.

    python benchmarks/released_tables.py

Prints Markdown, and draws what can be spared, and heads by what their attention rests on, beside
the files. A test compares the page with what is printed.
"""

import math

import numpy as np
import released_continued
import released_readings
import xarray
from matplotlib.figure import Figure
from released_readings import MODELS, RESULTS, WIKI, dataset

from rope_study import figures
from rope_study.figures.style import KIND_COLOURS, line_style, new_figure

SPARED = 0.01  # nats a token: what may be lost where rotation is said to cost nothing
THETA = {"all": 1e5, "local": 1e4, "global": 1e6}  # of SmolLM2, and of Gemma 3's kinds of layers
WINDOW = 512  # of Gemma 3's local layers
EDITS = ("unrotate fast", "unrotate slow", "ablate fast", "ablate random as fast", "ablate slow")
EDITS += ("ablate random as slow",)
PATTERNS = {"diagonal": "diagonal", "previous": "previous", "sink": "first"}  # of kinds of heads


def main() -> None:
    """The command."""
    for name, table in tables().items():
        print(f"{name}\n\n{table}\n")
    for key, title in MODELS.items():
        folder = RESULTS / key / WIKI
        rotation_needed(key, title).savefig(folder / "rotation_needed.png", dpi=90)
        patterns_kept(key, title).savefig(folder / "patterns_kept.png", dpi=90)
        domains = released_readings.usage_by_domain(key)
        if len(domains) > 1:
            figure = figures.usage_by_domain(domains)
            figure.savefig(RESULTS / key / "fig_19_usage_by_domain.png", dpi=60)
    for name in ("by_position", "usage"):
        figure = getattr(released_continued, name)()
        figure.savefig(released_continued.FOLDER / f"{name}.png", dpi=80)


def tables() -> dict[str, str]:
    """Markdown by title."""
    made = {"What rotation can be spared": spared()}
    for key, title in MODELS.items():
        made[f"Bands of {title}"] = by_band(key)
    made["Kinds of layers of Gemma 3"] = by_layers()
    made["Bands of one kind of head"] = by_heads()
    made["Heads that keep their pattern"] = kept()
    made["Passkeys"] = passkeys()
    made["What probes read"] = probed()
    for title, table in released_readings.TABLES.items():
        made[title] = markdown(*table())
    made["Continued training"] = markdown(*released_continued.losses())
    made["Fastest and slowest pairs"] = fastest_and_slowest()
    return made


def rotations(model: str) -> dict[int, xarray.Dataset]:
    """What `rotation` measured, by length."""
    names = [path.stem for path in (RESULTS / model / WIKI).glob("rotation_*.nc")]
    lengths = sorted(int(name.split("_")[1]) for name in names)
    return {length: dataset(model, f"rotation_{length}") for length in lengths}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def difference(measured: xarray.Dataset, name: str) -> str:
    """Nats a token against the plain decoder."""
    return f"{float(measured.loss_difference.sel(intervention=name)):+.3f}"


# --- tables -----------------------------------------------------------------------------------


def spared() -> str:
    """How many of the slowest pairs go unrotated for at most SPARED, in four units."""
    head = ["model, layers", "tokens", "spared", "p", "p*", "rad/token", "rad", "cycles"]
    rows = []
    for model, title in MODELS.items():
        for kind in ("all",) if model == "smollm2" else ("local", "global"):
            for length, measured in rotations(model).items():
                rows.append([f"{title}, {kind}", f"{length:,}", *_spared(measured, kind, length)])
    return markdown(head, rows)


def _spared(measured: xarray.Dataset, kind: str, length: int) -> list[str]:
    turned, differences = unrotated(measured, kind, length)
    pairs = max(differences)
    reach = _reach(kind, length)
    p_star = math.log(reach / (2 * math.pi)) / math.log(THETA[kind])
    count = 0
    for more in sorted(differences):  # up to the first that costs more
        if differences[more] > SPARED:
            break
        count = more
    if not count:
        return [f"0 of {pairs}", "1.00", f"{p_star:.2f}", "", "", ""]
    return [
        f"{count} of {pairs}",
        f"{1 - count / pairs:.2f}",
        f"{p_star:.2f}",
        f"{turned[count] / reach:.1e}",
        f"{turned[count]:.2f}",
        f"{turned[count] / (2 * math.pi):.2f}",
    ]


def unrotated(
    measured: xarray.Dataset, kind: str, length: int
) -> tuple[dict[int, float], dict[int, float]]:
    """By number of slowest pairs unrotated: radians the fastest of them turns, and nats lost."""
    losses = {
        int(name.split()[-1]): float(measured.loss_difference.sel(intervention=name))
        for name in measured.intervention.values
        if name.startswith(f"{kind} slowest")
    }
    pairs = max(losses)
    reach = _reach(kind, length)
    return {n: reach * THETA[kind] ** (n / pairs - 1) for n in losses}, losses


def _reach(kind: str, length: int) -> int:
    """Over how many tokens a layer of the kind reads."""
    return min(length, WINDOW) if kind == "local" else length


def by_band(model: str) -> str:
    """Every eighth: loss and the gain from copying."""
    measured = dataset(model, "bands")
    edits = {
        "unrotated": "unrotate {}, all layers",
        "random unrotated": "unrotate random as {}",
        "set to zero": "ablate {}, all layers",
        "random to zero": "ablate random as {}",
        "halved": "rescale {}",
        "random halved": "rescale random as {}",
    }
    copying = measured.copy_gain_difference.sel
    rows = [
        [
            str(i),
            *(difference(measured, edit.format(i)) for edit in edits.values()),
            f"{float(copying(intervention=edits['unrotated'].format(i))):+.1f}",
            f"{float(copying(intervention=edits['set to zero'].format(i))):+.1f}",
        ]
        for i in range(8)
    ]
    return markdown(["eighth", *edits, "copying, unrotated", "copying, zero"], rows)


def fastest_and_slowest() -> str:
    """What the README says of both models."""
    edits = {"held still": "unrotate {}, all layers", "set to zero": "ablate {}, all layers"}
    head = [f"{title}, {what}" for title in MODELS.values() for what in edits]
    rows = [
        [name, *(difference(dataset(key, "bands"), edit.format(i))
                 for key in MODELS for edit in edits.values())]
        for name, i in (("fastest", 0), ("slowest", 7))
    ]  # fmt: skip
    return markdown(["pairs", *head], rows)


def by_layers() -> str:
    """Gemma's local and global layers apart."""
    measured = dataset("gemma3", "bands")
    edits = [f"{e} {{}}, {kind} layers" for e in ("unrotate", "ablate") for kind in THETA]
    rows = [[str(i), *(difference(measured, edit.format(i)) for edit in edits)] for i in range(8)]
    head = [f"{what}, {kind}" for what in ("unrotated", "to zero") for kind in THETA]
    return markdown(["eighth", *head], rows)


def by_heads() -> str:
    """Eighths set to zero in the heads of one kind, in all layers."""
    rows = []
    for model, title in MODELS.items():
        measured = dataset(model, "bands")
        kinds = np.unique(dataset(model, "head_names").name)
        of_probe = dataset(model, "head_names").name.values
        for kind in kinds:
            names = [f"ablate {i}, {kind} heads" for i in range(8)]
            if names[0] in measured.intervention.values:
                heads = int((of_probe == kind).sum())
                row = [difference(measured, name) for name in names]
                rows.append([f"{title}, {kind} ({heads})", *row])
    return markdown(["heads", *map(str, range(8))], rows)


def kept() -> str:
    """How many heads keep more than half of what names them, when their own layer is edited."""
    rows = []
    for model, title in MODELS.items():
        heads = dataset(model, "heads")
        for kind in (*PATTERNS, "semantic"):
            of_kind = heads.kind.values == kind
            if not of_kind.any():
                continue
            values = kept_share(heads, kind).values[:, of_kind]
            counts = dict(zip(heads.intervention.values, (values > 0.5).sum(axis=1), strict=True))
            rows.append([
                f"{title}, {kind}",
                str(int(of_kind.sum())),
                *(str(int(counts[edit])) for edit in EDITS),
            ])  # fmt: skip
    return markdown(["kind", "heads", *EDITS], rows)


def passkeys() -> str:
    """Right answers of all questions, one of four by chance."""
    names = ["plain", "0.75-RoPE", "0.5-RoPE", "0-RoPE"]
    names += [f"{e} {i}, all layers" for e in ("unrotate", "ablate") for i in (0, 7)]
    names += ["ablate random as 0", "ablate random as 7"]
    names += ["ablate massive", "ablate random as massive"]
    columns = {
        f"{title}, {length}": dataset(model, f"passkey_{length}").right.mean("question")
        for model, title in MODELS.items()
        for length in (512, 2048)
        if (RESULTS / model / WIKI / f"passkey_{length}.nc").exists()
    }
    rows = [
        [name, *(f"{float(right.sel(intervention=name)):.2f}" for right in columns.values())]
        for name in names
    ]
    return markdown(["edit", *columns], rows)


def probed() -> str:
    """Outliers within a turn, massive values, and sinks."""
    rows = []
    for model, title in MODELS.items():
        outliers, massive, sinks = (
            dataset(model, name) for name in ("rotary_outliers", "massive_values", "sinks")
        )
        counts = [int(massive[f"{name}_massive_by_head"].sum()) for name in "qkv"]
        rates = [float(rate) for rate in sinks.sink_rate]
        rows.append([
            title,
            *(f"{float(outliers[name]):.3f}"
              for name in ("pairs_within", "q_outliers_within", "k_outliers_within")),
            *map(str, counts),
            *(f"{rate:.3f}" for rate in rates),
        ])  # fmt: skip
    head = ["model", "pairs within a turn", "outliers of q", "of k"]
    head += ["massive in q", "in k", "in v", "sinks above 0.3", "above 0.8"]
    return markdown(head, rows)


def kept_share(heads: xarray.Dataset, kind: str) -> xarray.DataArray:
    """[intervention, layer, head]: what is left of what names the kind, as a share of plain.

    Of semantic heads there is no one pattern: the share of attention that stays where it was.
    """
    if kind not in PATTERNS:
        return 1 - heads.total_variation
    values = heads[PATTERNS[kind]]
    return values / values.sel(intervention="plain")


# --- figures ----------------------------------------------------------------------------------


def rotation_needed(model: str, title: str) -> Figure:
    """Loss against what is unrotated, by length: as pairs, and as radians that they would turn."""
    kinds = ("all",) if model == "smollm2" else ("local", "global")
    figure = new_figure((10, 0.8 + 3.4 * len(kinds)), f"{title}: slowest pairs unrotated")
    grid = figure.subplots(len(kinds), 2, sharey=True, squeeze=False)
    for (left, right), kind in zip(grid, kinds, strict=True):
        for i, (length, measured) in enumerate(rotations(model).items()):
            turned, losses = unrotated(measured, kind, length)
            counts = sorted(losses)
            y = [max(losses[n], 1e-4) for n in counts]
            left.plot(counts, y, label=f"{length:,} tokens", marker=".", **line_style(i))
            right.plot([turned[n] for n in counts], y, marker=".", **line_style(i))
        for axes in (left, right):
            axes.axhline(SPARED, color="0.6", linewidth=0.8)
            axes.set_yscale("log")
            axes.grid(color="0.92")
        left.set_ylabel(f"{kind} layers: loss\nover plain [nats/token]")
        right.set_xscale("log")
        left.legend(fontsize=8)
    grid[-1, 0].set_xlabel("pairs unrotated, slowest first")
    grid[-1, 1].set_xlabel("radians over the text, of the fastest of them")
    return figure


def patterns_kept(model: str, title: str) -> Figure:
    """Every head by what is left of its pattern with the fast, and the slow quarter edited."""
    heads = dataset(model, "heads")
    columns = {"unrotated": "unrotate {}", "set to zero": "ablate {}"}
    columns["as much norm at random to zero"] = "ablate random as {}"
    text = f"{title}: what is left of the pattern of heads, the own layer edited"
    figure = new_figure((11, 4.4), text)
    for axes, (what, edit) in zip(figure.subplots(1, 3, sharey=True), columns.items(), strict=True):
        for kind in (*PATTERNS, "semantic"):
            of_kind = heads.kind.values == kind
            share = kept_share(heads, kind).clip(0, 1.5)
            fast, slow = (
                share.sel(intervention=edit.format(band)).values[of_kind]
                for band in ("fast", "slow")
            )
            label = f"{kind} ({of_kind.sum()})"
            axes.scatter(fast, slow, s=16, color=KIND_COLOURS[kind], label=label, alpha=0.8)
        axes.set_title(what, fontsize=10)
        axes.set_xlabel("fastest quarter")
        axes.set(xlim=(-0.05, 1.55), ylim=(-0.05, 1.55))
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    figure.axes[0].set_ylabel("slowest quarter")
    figure.axes[0].legend(fontsize=8, title="heads")
    return figure


if __name__ == "__main__":
    main()
