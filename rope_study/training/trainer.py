"""Training one decoder.

A run is a function of its configuration. Killed at any step and started again, it goes on from
its last checkpoint to the same loss, bit for bit on the same machine and mesh.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from rope_study.checkpoints import runs
from rope_study.data import Corpus
from rope_study.decoder import Decoder, fit_layout
from rope_study.errors import UserError
from rope_study.files import check_writable
from rope_study.sharding import Layout, check_same, compiler, is_main_process, preemption
from rope_study.training import diagnosis, nonfinite, run_folder
from rope_study.training.gradients import Batch, check_batch, loss_and_gradients
from rope_study.training.initial import continued
from rope_study.training.nonfinite import NotFinite
from rope_study.training.optimizer import make_optimizer
from rope_study.training.prefetch import batch_reader, prefetched
from rope_study.training.profiling import StepTrace
from rope_study.training.progress import Progress
from rope_study.training.settings import NONE, Run, TrainSettings
from rope_study.training.starts import record_start
from rope_study.training.usage_log import UsageLog


class TrainState(struct.PyTreeNode):
    """All that a step changes."""

    step: jax.Array  # how many steps are done
    params: Any
    opt_state: optax.OptState


class Trainer:
    """A decoder with its optimizer, compiled step and checkpoints."""

    def __init__(self, decoder: Decoder, settings: TrainSettings, seed: int):
        """`decoder` with a layout."""
        assert decoder.layout is not None
        self.decoder, self.layout, self._seed = decoder, decoder.layout, seed
        self._init_from, self._skips = settings.init_from, settings.skip_nonfinite
        self._accumulate = settings.accumulate
        self.optimizer, self.schedule = make_optimizer(settings, decoder.config)
        boxed = jax.eval_shape(self._init, jax.random.key(0))
        self.shardings = self.layout.tree(boxed)
        self.abstract_state = runs.abstract(boxed, self.shardings)
        self.step = jax.jit(
            self._step,
            in_shardings=(self.shardings, self.layout.sharding("batch", None)),
            out_shardings=(self.shardings, self.layout.sharding()),
            donate_argnums=0,
        )

    def init(self) -> TrainState:
        """The state before the first step, made where it will live."""
        make = jax.jit(lambda key: nn.unbox(self._init(key)), out_shardings=self.shardings)
        state = make(jax.random.key(self._seed))
        if self._init_from == NONE:
            return state
        return state.replace(params=continued(self._init_from, state.params))

    def _init(self, key: jax.Array) -> TrainState:
        params = self.decoder.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params, opt_state=self.optimizer.init(params)
        )

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        """One step on a batch."""
        loss, gradients = loss_and_gradients(
            self.decoder, state.params, batch, self._accumulate, self.shardings.params
        )
        with jax.named_scope("optimizer"):
            gradients = compiler.in_row_major(gradients, self.layout)
            updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": self.schedule(
                nonfinite.updates_made(state.opt_state) if self._skips else state.step
            ),
        }
        done = TrainState(step=state.step + 1, params=params, opt_state=opt_state)
        return nonfinite.leave_out(state, done, metrics) if self._skips else (done, metrics)

    def save(self, manager: runs.Manager, step: int, state: TrainState) -> None:
        """Starts to write a checkpoint."""
        manager.save(step, {runs.PARAMS: state.params, runs.OPTIMIZER: state.opt_state})

    def restore(self, manager: runs.Manager) -> TrainState:
        """The newest intact checkpoint's state, or the initial one where nothing was saved.

        Damaged ones after it are set aside, in one line to stderr.

        Raises:
          UserError: no checkpoint is intact.
        """
        steps, shapes = manager.steps(), self.abstract_state
        if not steps:
            return self.init()
        items = {runs.PARAMS: shapes.params, runs.OPTIMIZER: shapes.opt_state}
        step, restored, problems = manager.newest_intact(items, steps)
        reasons = "; ".join(problem.problem for problem in problems)
        if step is None:
            raise UserError(f"no checkpoint is intact: {reasons}: choose a new workdir", "workdir")
        if problems:
            manager.set_aside([later for later in steps if later > step])
            if is_main_process():
                print(
                    f"{reasons}: set aside in {runs.DAMAGED}/; going on from step {step}",
                    file=sys.stderr,
                )
        done = jax.device_put(jnp.asarray(step, jnp.int32), self.shardings.step)
        return TrainState(done, restored[runs.PARAMS], restored[runs.OPTIMIZER])

    def diagnose(self, params: dict, batch: Batch) -> str:
        """What is not finite first in a step on this batch, in words."""
        shardings = self.shardings.params
        return diagnosis.first_not_finite(self.decoder, params, batch, self._accumulate, shardings)

    def lower(self, rows: int, length: int) -> jax.stages.Lowered:
        """The step's program for `rows` windows of length + 1 tokens, before it is compiled."""
        sharding = self.layout.sharding("batch", None)
        windows = jax.ShapeDtypeStruct((rows, length + 1), jnp.int32, sharding=sharding)
        return self.step.lower(self.abstract_state, windows)

    @property
    def checkpoint_size(self) -> int:
        """Bytes of a checkpoint before they are compressed."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.abstract_state))


def make_trainer(run: Run, layout: Layout) -> Trainer:
    """The trainer of a run on these devices; nothing is computed yet.

    Raises:
      UserError: sizes that do not divide over the devices, or an attention backend that cannot run
        the decoder on them.
    """
    layout = fit_layout(run.decoder, layout)
    check_batch(run.data.batch_size, run.data.length, run.train.accumulate, layout)
    return Trainer(Decoder(run.decoder, layout), run.train, run.seed)


def train(run: Run, corpus: Corpus, layout: Layout) -> tuple[Decoder, dict]:
    """Trains to the last step, or goes on from the newest intact checkpoint in the run's folder.

    Args:
      run: what to train; its folder is claimed, and gets run.json, model.json, starts.json,
        checkpoints/, metrics.jsonl, tensorboard/ and, where asked for, usage_by_step.nc.
      corpus: of run.data.
      layout: the devices.

    Returns:
      The decoder and its trained parameters.

    Raises:
      UserError: as make_trainer; the processes read different texts; the folder holds another run,
        has another owner or cannot be written; or a loss or a state that is no longer finite.
      KeyboardInterrupt: as it came, with a note on what is saved; after a notice of preemption
        (sharding.preemption) that is the last step.
    """
    check_same({"the text": corpus.fingerprint})
    trainer = make_trainer(run, layout)
    with run_folder.owned(run, corpus, trainer.checkpoint_size):
        # Every process writes; where one cannot, Orbax lets the others wait for many minutes.
        check_writable(run.folder / runs.CHECKPOINTS, "workdir")
        if is_main_process():
            runs.write_model(run.folder, run.decoder, corpus.tokenizer)
        return trainer.decoder, _train(run, corpus, trainer)


def _train(run: Run, corpus: Corpus, trainer: Trainer) -> dict:
    """Steps from the newest checkpoint to the last; returns the parameters."""
    batch_of = batch_reader(run, corpus, trainer.layout)
    keep = run.train.keep_last, run.train.keep_every
    with runs.Manager(run.folder, *keep) as manager, _noting(run, manager):
        try:
            return _steps(run, corpus, trainer, manager, batch_of)
        except NotFinite as stop:
            # Its frames hold a state, and there may be room for one only.
            raise _explained(stop.with_traceback(None), trainer, manager, batch_of) from None


def _steps(
    run: Run,
    corpus: Corpus,
    trainer: Trainer,
    manager: runs.Manager,
    batch_of: Callable[[int], Batch],
) -> dict:
    """The loop; NotFinite where the run has to stop as nonfinite.Watch says."""
    state = trainer.restore(manager)
    first = int(state.step)
    record_start(run, trainer.layout, first)
    with (
        Progress(run, trainer.layout, first) as progress,
        UsageLog(run, corpus, trainer.decoder, first) as usage,
        StepTrace(run, first) as trace,
        preemption.awaited(),
        contextlib.closing(prefetched(batch_of, range(first, run.train.steps))) as batches,
    ):

        def save(step: int, state: TrainState) -> None:
            progress.save()
            usage.save()
            trainer.save(manager, step, state)

        for step in range(first, run.train.steps):
            if preemption.asked():
                if step > first and step % run.train.checkpoint_every:
                    save(step, state)
                raise preemption.Preempted
            usage.read(step, state.params)
            with trace.step(step):
                with progress.waiting():
                    batch = next(batches)
                state, metrics = trainer.step(state, batch)
            trace.after(step, metrics)
            # Reads the step before this one, so that the device never waits for the host.
            progress.update(step, metrics)
            done = step + 1
            if done % run.train.checkpoint_every == 0 or done == run.train.steps:
                save(done, state)
        usage.read(run.train.steps, state.params)
    return state.params


def _explained(
    stop: NotFinite, trainer: Trainer, manager: runs.Manager, batch_of: Callable[[int], Batch]
) -> UserError:
    """Where it began: the steps since the newest checkpoint run again, as each gives up its state.

    Where nothing was saved that is from the beginning.
    """
    manager.finish()
    state = trainer.restore(manager)
    saved = int(state.step)
    if is_main_process():
        print(f"{stop}: from step {saved} again, to see where it began", file=sys.stderr)
    for step in range(saved, stop.step):
        state, _ = trainer.step(state, batch_of(step))
    where = trainer.diagnose(state.params, batch_of(stop.step))
    good = f"the last good checkpoint is step {saved}" if saved else "no checkpoint was saved"
    otherwise = "" if stop.left_out else " (skip_nonfinite=True leaves such updates out)"
    return UserError(
        f"{stop}: {where}; {good}{otherwise}",
        "learning_rate",
        "lower learning_rate or lengthen warmup",
    )


@contextlib.contextmanager
def _noting(run: Run, manager: runs.Manager) -> Iterator[None]:
    """Notes on an interruption what is saved."""
    try:
        yield
    except KeyboardInterrupt as stop:
        manager.finish()
        step = manager.latest()
        saved = f"step {step} of {run.train.steps}" if step else "nothing yet"
        stop.add_note(f"{saved} is saved in {run.folder}; the same command goes on from there")
        raise
