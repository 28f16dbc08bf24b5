"""Near-duplicates across the split: held-out documents that are almost in the training text too.

MinHash (Broder 1997) by the library rensa: of every document the smallest of HASHES hashes of its
runs of WORDS words. Two documents agree in a hash with the probability of their Jaccard similarity;
those that agree in a whole band of hashes are compared in all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rope_study.data.preparation.streams import optional

WORDS, HASHES, SEED = 5, 64, 0
BAND = 4  # a pair of similarity s meets in one of the 16 bands with 1 - (1 - s^4)^16: 0.9998 at 0.8
SIMILAR = 0.8  # at and above it a document counts as a near-duplicate
ROWS = 2**16  # documents compared at a time


def signatures(texts: Sequence[str]) -> np.ndarray:
    """uint32[texts, HASHES]."""
    rows = optional("rensa").RMinHash.digests_from_token_sets(map(_shingles, texts), HASHES, SEED)
    return np.array(rows, np.uint32).reshape(-1, HASHES)


def _shingles(text: str) -> list[str]:
    words = text.split()
    count = max(len(words) - WORDS + 1, 1)
    return [" ".join(words[i : i + WORDS]) for i in range(count)]


def find(held_out: np.ndarray, train: np.ndarray) -> np.ndarray:
    """bool[H]: which held-out documents have a near-duplicate among those to train on.

    Args:
      held_out: signatures uint32[H, HASHES].
      train: signatures uint32[N, HASHES]; may be memory-mapped, and is read in parts.
    """
    found = np.zeros(len(held_out), bool)
    for start in range(0, len(train), ROWS):
        part = np.asarray(train[start : start + ROWS])
        for band in range(0, HASHES, BAND):
            waiting = np.flatnonzero(~found)
            keys = _keys(held_out[waiting, band : band + BAND])
            order = np.argsort(keys, kind="stable")
            for row, candidates in _meetings(keys[order], _keys(part[:, band : band + BAND])):
                rows = waiting[order[candidates]]
                agreeing = np.mean(held_out[rows] == part[row], axis=1)
                found[rows[agreeing >= SIMILAR]] = True
    return found


def _keys(band: np.ndarray) -> np.ndarray:
    """uint64[n] of uint32[n, BAND]."""
    keys = np.zeros(len(band), np.uint64)
    for column in band.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _meetings(sorted_keys: np.ndarray, keys: np.ndarray) -> Any:
    """(i, slice of sorted_keys that equal keys[i]) of every i that has any."""
    first = np.searchsorted(sorted_keys, keys)
    last = np.searchsorted(sorted_keys, keys, "right")
    for i in np.flatnonzero(last > first):
        yield i, slice(first[i], last[i])
