"""The numbers of a study: every encoding's loss and its difference from the first, over seeds."""

import dataclasses
import math

import jax
import numpy as np
import xarray

from rope_study.data import Corpus
from rope_study.decoder import parameter_count
from rope_study.training.evaluate import Evaluation, mean_and_interval
from rope_study.training.settings import Run, Study
from rope_study.training.starts import source_revision, versions


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run gave.

    Attributes:
      run: what was trained.
      evaluation: held-out losses.
      usage: of probes.frequency_usage, on held-out windows.
      metrics: the rows of metrics.jsonl.
      usage_by_step: of training with probe_every, else None.
    """

    run: Run
    evaluation: Evaluation
    usage: xarray.Dataset
    metrics: list[dict[str, float]]
    usage_by_step: xarray.Dataset | None = None


def by_encoding(outcomes: list[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes of each encoding, a seed each, in their order."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.run.name, []).append(outcome)
    return groups


def summarise(outcomes: list[Outcome], study: Study, corpus: Corpus) -> dict:
    """Everything measured, as JSON values: "encodings", a row each, "facts" and "config"."""
    groups = by_encoding(outcomes)
    first = next(iter(groups.values()))
    rows = [_row(name, group, first) for name, group in groups.items()]
    run = outcomes[0].run
    facts = {
        "tokens seen": run.train.steps * run.data.batch_size * run.data.length,
        "parameters": parameter_count(run.decoder),
        "seeds": ", ".join(str(outcome.run.seed) for outcome in first),
        "corpus": corpus.name,
        "corpus fingerprint": corpus.fingerprint,
        "training tokens": len(corpus.train),
        "held-out tokens evaluated": outcomes[0].evaluation.tokens,
        "sequence length": run.data.length,
        "documents": run.data.documents,
        "tokenizer": corpus.tokenizer.name,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **{f"version of {name}": version for name, version in versions().items()},
        "source revision": source_revision(),
    }
    return {"encodings": rows, "facts": facts, "config": study.config}


def _row(name: str, group: list[Outcome], first: list[Outcome]) -> dict:
    """One encoding: means over seeds, and paired differences from the first encoding."""
    loss, _ = mean_and_interval([outcome.evaluation.loss for outcome in group])
    speeds = [row["tokens_per_second"] for outcome in group for row in outcome.metrics]
    row = {
        "name": name,
        "perplexity": math.exp(loss),
        "loss": loss,
        "losses": {str(outcome.run.seed): outcome.evaluation.loss for outcome in group},
    }
    if all(outcome.metrics for outcome in group):  # else they were lost, and nothing hangs on them
        row["train_loss"] = float(np.mean([_last_loss(outcome.metrics) for outcome in group]))
        row["tokens_per_second"] = float(np.median(speeds))
    skipped = [o.metrics[-1].get("skipped_updates", 0) for o in group if o.metrics]
    if any(skipped):
        row["skipped_updates"] = int(sum(skipped))
    if group is first:
        return row
    pairs = [a.evaluation.difference(b.evaluation) for a, b in zip(group, first, strict=True)]
    differences = {str(o.run.seed): mean for o, (mean, _) in zip(group, pairs, strict=True)}
    row |= {"difference": pairs[0][0], "difference_se": pairs[0][1], "differences": differences}
    if len(group) > 1:
        mean, half_width = mean_and_interval(list(differences.values()))
        row |= {"difference": mean, "difference_interval": half_width}
        del row["difference_se"]  # over windows: it does not see seeds
    return row


def _last_loss(metrics: list[dict[str, float]]) -> float:
    """The last one that is finite: updates that are not may be left out."""
    return next((r["loss"] for r in reversed(metrics) if math.isfinite(r["loss"])), math.nan)


def spread(row: dict) -> float:
    """How far a row's difference may be off: its interval over seeds, or its standard error."""
    return row["difference_interval" if "difference_interval" in row else "difference_se"]


def table(rows: list[dict]) -> str:
    """The results as text; differences are from the first encoding."""
    over_seeds = any("difference_interval" in row for row in rows)
    sign = "difference +- 95 %" if over_seeds else "difference +- s.e."
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'encoding':<{width}}  perplexity  loss (nats)  {sign}    tokens/s"]
    for row in rows:
        difference = "-"
        if "difference" in row:
            difference = f"{row['difference']:+.4f} +- {spread(row):.4f}"
        speed = f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else "-"
        lines.append(
            f"{row['name']:<{width}}  {row['perplexity']:>10.4f}  {row['loss']:>11.4f}"
            f"  {difference:>18}  {speed:>10}"
        )
    return "\n".join(lines)
