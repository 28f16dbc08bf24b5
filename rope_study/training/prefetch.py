"""Batches of a run: a thread reads and places those of the next steps while the devices compute."""

import collections
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

from rope_study.data import Corpus
from rope_study.sharding import Layout
from rope_study.training.gradients import Batch
from rope_study.training.settings import Run

AHEAD = 2  # batches that wait on the devices


def batch_reader(run: Run, corpus: Corpus, layout: Layout) -> Callable[[int], Batch]:
    """The batch of a step, on the devices."""
    batches, rows, length = corpus.train_batches(run.seed), run.data.batch_size, run.data.length

    def batch_of(step: int) -> Batch:
        place = layout.place_rows
        windows = place(lambda start, stop: batches.rows(step, start, stop), (rows, length + 1))
        if corpus.weigh_train is None:
            return windows
        return windows, place(lambda *of: batches.weights(step, *of), (rows, length))

    return batch_of


def prefetched(batch_of: Callable[[int], Batch], steps: range) -> Generator[Batch]:
    """The batches of these steps in order; what reading one raises is raised where it is due.

    Close it, as contextlib.closing does, where not all are taken: the thread ends then.
    """
    pending: collections.deque[Future[Batch]] = collections.deque()
    with ThreadPoolExecutor(1, "batches") as thread:
        try:
            for step in steps:
                pending.append(thread.submit(batch_of, step))
                if len(pending) > AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)
