"""Passkey questions: a number said once in long, dull text, and asked for at its end.

The task of Mohtashami and Jaggi (2305.16300), in words of this project: the right number is scored
against wrong ones by likelihood, so that small models need no free generation.
"""

import dataclasses

import numpy as np

from rope_study.data.tokenizers.base import Tokenizer
from rope_study.errors import UserError

BEGINNING = "One sentence below holds a pass key. Remember it, for you will be asked about it.\n"
FILLER = (
    "Rain falls on the roof. Water runs down the road. A cart goes by. Then it is quiet again.\n"
)
SENTENCE = "The pass key is {key}. Keep {key} in mind.\n"
QUESTION = "\nWhat was the pass key? The pass key is {key}"


@dataclasses.dataclass(frozen=True)
class Passkeys:
    """Q questions with C answers each, the right one first; all of T tokens.

    Attributes:
      tokens: int32[Q, C, T], which differ in the answer only, at their end.
      answers: how many tokens each answer has; they are the last.
      depths: float64[Q], where the number stands, 0 at the beginning and 1 right before the
        question.
    """

    tokens: np.ndarray
    answers: int
    depths: np.ndarray

    def right(self, losses: np.ndarray) -> np.ndarray:
        """bool[Q]: whether the right answer is the likeliest, of token losses [Q * C, T - 1]."""
        return self.answer_losses(losses).argmin(axis=1) == 0

    def answer_losses(self, losses: np.ndarray) -> np.ndarray:
        """[Q, C]: nats an answer's token costs in the mean, of token losses [Q * C, T - 1]."""
        return losses[:, -self.answers :].mean(axis=1).reshape(self.tokens.shape[:2])


def passkeys(
    tokenizer: Tokenizer,
    length: int,
    *,
    count: int = 64,
    candidates: int = 4,
    digits: int = 5,
    seed: int = 0,
) -> Passkeys:
    """Questions at depths spread evenly from 0 to 1, with numbers at random.

    Args:
      tokenizer: of the model; texts begin with its BOS where it has one.
      length: tokens of a text, T; the filler is cut to fit.
      count: Q. candidates: C, with the right one. digits: of every number. seed: of the numbers.

    Raises:
      UserError: a length too short for the question alone, or numbers of more and fewer tokens.
    """
    random = np.random.default_rng(seed)
    depths = np.linspace(0, 1, count)
    lowest = 10 ** (digits - 1)
    rows = []
    for depth in depths:
        numbers = lowest + random.choice(9 * lowest, candidates, replace=False)
        rows.append([_text(tokenizer, length, depth, numbers[0], answer) for answer in numbers])
    lengths = {len(answer) for row in rows for _, answer in row}
    if len(lengths) > 1:
        raise UserError(
            f"passkeys: numbers of digits={digits} have {sorted(lengths)} tokens in this tokenizer;"
            " answers of one length are needed: take fewer digits",
            "digits",
        )
    tokens = np.array([[np.concatenate(parts) for parts in row] for row in rows], np.int32)
    return Passkeys(tokens, lengths.pop(), depths)


def _text(
    tokenizer: Tokenizer, length: int, depth: float, key: int, answer: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids of all but the answer, ids of the answer), together `length`."""
    start = np.array([] if tokenizer.bos is None else [tokenizer.bos], np.int32)
    beginning, sentence = tokenizer.encode(BEGINNING), tokenizer.encode(SENTENCE.format(key=key))
    asked = tokenizer.encode(QUESTION.format(key=answer))
    size = len(asked) - len(tokenizer.encode(QUESTION.format(key="")))
    room = length - sum(map(len, (start, beginning, sentence, asked)))
    filler = tokenizer.encode(FILLER)
    if room < 0:
        raise UserError(
            f"passkeys: length={length} is too short, the question alone has {length - room}",
            "length",
        )
    before = int(depth * (room // len(filler))) * len(filler)
    dull = np.resize(filler, room)
    whole = np.concatenate([start, beginning, dull[:before], sentence, dull[before:], asked])
    return whole[:-size], whole[-size:]
