"""A notice of preemption (SIGTERM): training saves after a step that all processes agree on."""

import contextlib
import itertools
from collections.abc import Iterator

from jax.experimental import multihost_utils


class Preempted(KeyboardInterrupt):
    """Training was asked to end, and has saved; its notes say what."""


class _Notice:
    awaited = False  # whether training asks for it after every step
    given = False
    asked = itertools.count()  # how often it did


@contextlib.contextmanager
def awaited() -> Iterator[None]:
    """Within, a notice waits until `asked` tells of it."""
    _Notice.awaited, _Notice.given = True, False
    try:
        yield
    finally:
        _Notice.awaited = False


def give() -> bool:
    """Gives notice to the training of this process; False where none is under way."""
    _Notice.given = _Notice.awaited
    return _Notice.awaited


def asked() -> bool:
    """Whether to save and end before the next step; every process asks before every step.

    Among several processes JAX takes SIGTERM itself, tells all, and chooses the step.
    """
    return _Notice.given or multihost_utils.reached_preemption_sync_point(next(_Notice.asked))
