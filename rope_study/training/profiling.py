"""A trace of some steps, which TensorBoard and XProf show.

Operations are under the scopes rotary, attention, mlp, loss and optimizer.
"""

import sys
from typing import Any

import jax

from rope_study.files import explained
from rope_study.files.paths import Writable
from rope_study.sharding import is_main_process
from rope_study.training.settings import Run

FOLDER = "profile"


class StepTrace:
    """Traces the steps run.train.profile_steps into the run's folder; the main process only."""

    def __init__(self, run: Run, first: int):
        """Of a run that goes on at step `first`."""
        asked, main = run.train.profile_steps, is_main_process()
        left = range(max(asked.start, first), asked.stop)
        if asked and not left and main:
            print(f"profile_steps: step {asked[-1]} is done, nothing is traced", file=sys.stderr)
        self._folder = Writable(run.folder / FOLDER)  # the profiler knows no buckets
        self._steps = left if main else range(0)
        self._running = False

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_) -> None:
        self._stop()  # what an interrupted run has traced so far

    def step(self, number: int) -> jax.profiler.StepTraceAnnotation:
        """What marks a step in the trace, which begins with the first of them."""
        if self._steps and number == self._steps[0]:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # it would slow the host down
            jax.profiler.start_trace(self._folder.local, profiler_options=options)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def after(self, number: int, outputs: Any) -> None:
        """Ends the trace with its last step, when the devices have made its outputs."""
        if self._steps and number == self._steps[-1]:
            jax.block_until_ready(outputs)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            with explained():
                self._folder.close()
