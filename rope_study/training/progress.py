"""What is seen of a run while it trains: the progress bar, and the log of metrics with speeds."""

import contextlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from rope_study.decoder.flops import train_flops
from rope_study.sharding import Layout, is_main_process
from rope_study.sharding.chips import chip
from rope_study.training.metrics import MetricsLog
from rope_study.training.nonfinite import Watch
from rope_study.training.settings import Run


class Progress:
    """Progress bar and metrics log; metrics are read one step late.

    Beside what steps measure, rows have tokens_per_second; mfu, the model's FLOPs a second
    (decoder/flops.py) over the peak of all devices, where sharding/chips.py has it; and
    seconds_waited, how long a step's batch took the host.
    """

    def __init__(self, run: Run, layout: Layout, first: int):
        main = is_main_process()
        self._log = MetricsLog(run.folder, first) if main else None
        self._bar = tqdm(
            total=run.train.steps,
            initial=first,
            desc=f"{run.name} seed {run.seed}",
            unit="step",
            disable=not main,
            mininterval=0.2 if sys.stderr.isatty() else 20,  # a log file wants few lines
        )
        self._settings, self._pending, self._watch = run.train, None, Watch(run.train)
        self._tokens_a_step = run.data.batch_size * run.data.length
        self._seconds_at_peak = _seconds_at_peak(run, layout)
        self._since, self._at = first, time.monotonic()
        self._waited = self._waited_before = 0.0  # seconds for all batches so far

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            if kind is None:  # else what was raised first counts, and is not hidden by another
                self.flush()
        finally:
            self._bar.close()
            if self._log:
                self._log.close()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in it as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def update(self, step: int, metrics: dict) -> None:
        """Takes one step's metrics, still on the device, and writes the step before."""
        self.flush()
        self._pending = step, metrics, self._waited

    def save(self) -> None:
        """Writes all metrics to where the checkpoint that follows will lie.

        Raises:
          NotFinite: see Watch.
        """
        self.flush()
        self._watch.read()
        if self._log:
            self._log.save()

    def flush(self) -> None:
        """Writes the metrics that are held back."""
        if self._pending is None:
            return
        (step, metrics, waited), self._pending = self._pending, None
        self._bar.update()
        self._watch.add(step, metrics)
        last = step + 1 == self._settings.steps
        if step % self._settings.log_every and not last:
            return
        self._watch.read()
        scalars = {name: float(value) for name, value in metrics.items()}
        speeds = self._speeds(step + 1, waited)
        if self._log:
            self._log.write(step, scalars | speeds)
        shown = {"loss": f"{scalars['loss']:.3f}"}
        shown["tokens/s"] = f"{speeds['tokens_per_second']:,.0f}"
        if "mfu" in speeds:
            shown["MFU"] = f"{speeds['mfu']:.1%}"
        self._bar.set_postfix(shown, refresh=False)

    def _speeds(self, done: int, waited: float) -> dict[str, float]:
        """Means over the steps since the last time; `waited` so far for data."""
        now, steps = time.monotonic(), done - self._since
        seconds = (now - self._at) / steps
        speeds = {"tokens_per_second": self._tokens_a_step / seconds}
        if self._seconds_at_peak is not None:
            speeds["mfu"] = self._seconds_at_peak / seconds
        speeds["seconds_waited"] = (waited - self._waited_before) / steps
        self._since, self._at, self._waited_before = done, now, waited
        return speeds


def _seconds_at_peak(run: Run, layout: Layout) -> float | None:
    """What a step would take if all devices did nothing but its products at their peak."""
    known = chip(layout.mesh.devices.flat[0].device_kind)
    if known is None:
        return None
    flops = train_flops(run.decoder, run.data.batch_size, run.data.length)
    return flops / (known.device_flops * layout.mesh.size)
