"""What a study writes: results.json, figures as PNG, and report.html."""

import json
import math
from pathlib import Path

import numpy as np
import xarray
from matplotlib.figure import Figure

from rope_study import figures
from rope_study.files import write_atomically
from rope_study.reports.results import Outcome, by_encoding
from rope_study.reports.study import write_report
from rope_study.training.settings import folder_name

CAPTIONS = {
    "loss_curves": "Training loss. All encodings saw the same batches from the same weights; over"
    " several seeds, their mean.",
    "differences": "Held-out loss minus that of the first encoding with the same seed: the mean and"
    " its 95 % interval, over seeds (a dot each) or, of one seed, over held-out windows.",
    "frequency_usage": "Mean norm of each rotary pair of queries and keys before rotation, by"
    " layer (Fig. 3 of the paper), one colour scale for queries and one for keys."
    " Bright bands are the frequencies that a layer uses; the fastest pairs are on the left.",
    "norms_by_layer": "Fig. 3 of the paper for this encoding: queries and keys by layer.",
    "norms_by_head": "Fig. 4 of the paper: the first layer by head.",
    "bands_over_steps": "How the bands formed: norms on the same held-out windows while this"
    " encoding trained, from the initial weights at the top to the last step, by kind of layers.",
    "values": "Fig. 13 of the paper, the control: values are not rotated and should show no order.",
    "decay": "Fig. 2 of the paper, without any model, at the head_dim and context of this study:"
    " RoPE's logit decays with distance for constant queries and keys, and not for Gaussian ones.",
}


def write(folder: Path, results: dict, outcomes: list[Outcome]) -> None:
    """Writes the results of a study into its folder, in place of earlier ones."""
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
    drawn, captions = draw(results, outcomes)
    write_report(
        folder / "report.html", results | {"captions": captions}, drawn, folder / "figures"
    )


def draw(results: dict, outcomes: list[Outcome]) -> tuple[dict[str, Figure], dict[str, str]]:
    """The figures of a study, and their captions, in the order of the report."""
    groups = by_encoding(outcomes)
    curves = {name: _mean_curve(group) for name, group in groups.items()}
    usages = {name: _mean_usage(group) for name, group in groups.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    drawn = {"loss_curves": figures.loss_curves(curves)} if curves else {}
    if len(groups) > 1:
        drawn["differences"] = figures.paired_differences(results["encodings"])
    drawn["frequency_usage"] = figures.usage_side_by_side(usages)
    captions = {name: CAPTIONS[name] for name in drawn}
    for name, usage in usages.items():
        of_encoding = {
            "norms_by_layer": figures.norms_by_layer(usage),
            "norms_by_head": figures.norms_by_head(usage, layer=0),
            "values": figures.value_norms(usage),
        }
        if (by_step := _mean_usage_by_step(groups[name])) is not None:
            of_encoding["bands_over_steps"] = figures.bands_over_steps(by_step)
        for kind, figure in of_encoding.items():
            key = f"{kind}_{folder_name(name)}"
            drawn[key], captions[key] = figure, CAPTIONS[kind]
    run = outcomes[0].run
    distances = range(0, run.data.length, max(1, run.data.length // 512))
    drawn["decay"] = figures.decay(run.decoder.head_dim, distances=distances)
    captions["decay"] = CAPTIONS["decay"]
    return drawn, captions


def _mean_curve(group: list[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """(steps[S], losses[S]), the mean over seeds, of one encoding; S that all seeds logged."""
    losses = [
        {row["step"]: row["loss"] for row in outcome.metrics if math.isfinite(row["loss"])}
        for outcome in group
    ]
    steps = sorted(set.intersection(*map(set, losses)))
    return np.array(steps), np.array([np.mean([of[step] for of in losses]) for step in steps])


def _mean_usage(group: list[Outcome]) -> xarray.Dataset:
    """Norms, the mean over seeds; all seeds read the same windows."""
    return _mean_over_seeds([outcome.usage for outcome in group])


def _mean_usage_by_step(group: list[Outcome]) -> xarray.Dataset | None:
    """The same while it trained, at the steps that all seeds have; None where there are none."""
    usages = [o.usage_by_step for o in group if o.usage_by_step is not None]
    if len(usages) < len(group):
        return None
    usage = _mean_over_seeds(list(xarray.align(*usages, join="inner")))
    return usage if usage.sizes["step"] > 1 else None


def _mean_over_seeds(usages: list[xarray.Dataset]) -> xarray.Dataset:
    stacked = xarray.concat(usages, "seed", coords="minimal", compat="override")
    usage = stacked.mean("seed", keep_attrs=True).assign_attrs(usages[0].attrs)
    if len(usages) == 1:
        return usage
    return usage.assign_attrs(text=f"{usage.attrs['text']}, mean of {len(usages)} seeds")
