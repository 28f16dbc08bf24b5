"""Batches read ahead by a thread: the same, in order, no more ahead than allowed, errors as due."""

import contextlib
import threading

import pytest

from rope_study.training.prefetch import AHEAD, prefetched


def test_in_order_and_no_more_ahead_than_allowed():
    read = []

    def batch_of(step):
        read.append((step, threading.current_thread()))
        return 10 * step

    given = []
    for batch in prefetched(batch_of, range(3, 11)):
        given.append(batch)
        assert len(read) <= len(given) + AHEAD
    assert given == [10 * step for step in range(3, 11)]
    assert [step for step, _ in read] == list(range(3, 11))
    assert {thread for _, thread in read} & {threading.main_thread()} == set()


def test_what_reading_raises_is_raised_in_its_place():
    def batch_of(step):
        if step == 2:
            raise OSError("the disk is gone")
        return step

    batches = prefetched(batch_of, range(9))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_the_thread_ends_where_not_all_are_taken():
    before = threading.active_count()
    with contextlib.closing(prefetched(lambda step: step, range(10**9))) as batches:
        assert next(batches) == 0
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
