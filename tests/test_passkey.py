"""Passkey questions: what they hold, and how answers are scored."""

import numpy as np
import pytest

from rope_study.data import load_tokenizer
from rope_study.data.passkey import passkeys
from rope_study.errors import UserError

BYTES = load_tokenizer("bytes")


def test_the_number_stands_at_its_depth_and_only_answers_differ():
    questions = passkeys(BYTES, 600, count=3, candidates=4)
    assert questions.tokens.shape == (3, 4, 600) and questions.answers == 5
    assert (questions.tokens[:, :, 0] == BYTES.bos).all()
    prompts = questions.tokens[:, :, :-5]
    assert (prompts == prompts[:, :1]).all()
    places = []
    for row in questions.tokens:
        answers = [BYTES.decode(text[-5:]) for text in row]
        assert len(set(answers)) == 4 and all(answer.isdigit() for answer in answers)
        text = BYTES.decode(row[0])
        assert text.count(answers[0]) == 3  # twice said, and the answer
        places.append(text.index(answers[0]))
    assert places[0] < 120 and places[0] < places[1] < places[2] and places[2] > 450


def test_the_likeliest_answer_counts():
    questions = passkeys(BYTES, 300, count=2, candidates=3)
    losses = np.ones((6, 299))
    losses[0, -5:] = 0.5  # the right one of the first question
    losses[4, -1] = 0  # a wrong one of the second
    assert questions.right(losses).tolist() == [True, False]
    assert questions.answer_losses(losses)[1].tolist() == [1, 0.8, 1]


def test_a_length_too_short_is_named():
    with pytest.raises(UserError, match="length=100 is too short, the question alone has"):
        passkeys(BYTES, 100)
