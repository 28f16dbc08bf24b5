"""Loss by document and by position: which tokens windows predict, the statistics, the command."""

import dataclasses
import re
import warnings

import numpy as np
import pytest
import xarray
from commands import check_one_line, run_command
from public_calls import CONFIG, write_run
from random_parameters import random_parameters

from rope_study import data, evaluate, rotary
from rope_study.data.batches import JOINED, MASKED
from rope_study.data.document_windows import (
    cut,
    load_documents,
    take,
    window_batches,
)
from rope_study.data.store import Side
from rope_study.decoder import Decoder
from rope_study.errors import UserError
from rope_study.reports.evaluation import table
from rope_study.training.by_document import evaluate_documents, position_groups
from rope_study.training.evaluate import mean_and_error

BOS = 256
TRAINED = dataclasses.replace(CONFIG, trained_length=16)
PARAMS = random_parameters(TRAINED)
LENGTHS = 5, 12, 40


def side(bos=BOS, documents=7):
    """Documents of 1 to 90 tokens besides BOS."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 256, size) for size in [90, 1, 33, 8, 64, 2, 17][:documents]]
    rows = texts if bos is None else [np.insert(text, 0, bos) for text in texts]
    starts = np.cumsum([0, *map(len, rows[:-1])])
    return Side(np.concatenate(rows).astype(np.uint16), starts, begun=int(bos is not None))


DOCUMENTS = take(side(), BOS, name="a text")
MODELS = {
    name: (Decoder(TRAINED.with_rotary(rotary.parse(name))), PARAMS) for name in ("rope", "nope")
}


@pytest.fixture(scope="module")
def losses():
    with warnings.catch_warnings(action="ignore"):
        return evaluate_documents(MODELS, DOCUMENTS, LENGTHS)


# --- windows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [BOS, None])
@pytest.mark.parametrize("across", [JOINED, MASKED])
@pytest.mark.parametrize("length", [1, 5, 40, 1000])
def test_every_token_but_a_first_is_predicted_once(bos, across, length):
    """After BOS, or without one after the token before; what only fills up weighs nothing."""
    documents = take(side(bos), bos)
    windows = cut(documents, length, across)
    counted = np.zeros(len(documents.tokens))
    for tokens, weights, places in window_batches(documents, windows, length, 300):
        assert tokens.shape == weights.shape == (len(places), places.shape[1] + 1)
        assert tokens.size <= 300 + len(tokens) or len(tokens) == 1
        for row, row_weights, row_places in zip(tokens, weights, places, strict=True):
            targets = row_places[row_places >= 0]
            np.testing.assert_array_equal(row[1 : len(targets) + 1], documents.tokens[targets])
            assert (np.diff(targets) == 1).all() and not row_weights[len(targets) + 1 :].any()
            if len(targets):
                before = documents.tokens[targets[0] - 1] if bos is None else bos
                assert row[0] == before and row_weights[0] == 1
            counted[targets] += row_weights[1 : len(targets) + 1]
    expected = np.ones(len(counted))
    expected[documents.starts] = 0
    np.testing.assert_array_equal(counted, expected)


def test_a_document_by_itself_begins_at_position_one():
    masked, joined = (cut(DOCUMENTS, 1000, across) for across in (MASKED, JOINED))
    np.testing.assert_array_equal(masked.places[masked.positions == 1], DOCUMENTS.starts + 1)
    assert joined.positions.max() == len(DOCUMENTS.tokens) - 1


def test_prompts_and_documents_without_a_target_do_not_count():
    prompts = np.array([0, 1, 33, 3, 0, 1, 0], np.uint32)
    documents = take(dataclasses.replace(side(), prompts=prompts), BOS)
    assert documents.numbers.tolist() == [0, 3, 4, 5, 6]
    counts = np.add.reduceat(documents.weights, documents.starts)
    assert counts.tolist() == [90, 5, 64, 1, 17]
    assert take(side(), BOS, most=3).numbers.tolist() == [0, 2, 4]


# --- numbers ----------------------------------------------------------------------------------


def alone(name, document, length):
    """The loss of each token of a document, read by itself in windows of so many."""
    decoder, params = MODELS[name]
    tokens = DOCUMENTS.tokens[DOCUMENTS.starts[document] + 1 : DOCUMENTS.stops[document]]
    losses = []
    for first in range(0, len(tokens), length):
        window = np.insert(tokens[first : first + length], 0, BOS).astype(np.int32)[None]
        logits = decoder.apply({"params": params}, window[:, :-1])[0][0]
        of_target = np.take_along_axis(np.asarray(logits), window[0, 1:, None], 1)[:, 0]
        losses.append(np.logaddexp.reduce(np.asarray(logits, np.float64), axis=1) - of_target)
    return np.concatenate(losses)


@pytest.mark.parametrize("length", [12, 40])
def test_losses_are_those_of_documents_by_themselves(losses, length):
    at = losses.sel(length=length)
    by_token = {n: [alone(n, d, length) for d in range(7)] for n in MODELS}
    for name, texts in by_token.items():
        means = [text.mean() for text in texts]
        np.testing.assert_allclose(at.document_loss.sel(rotary=name), means, rtol=1e-4)
        group = at.position_loss.sel(rotary=name, position=32)
        if length == 40:
            late = np.concatenate([np.concatenate([t[23:32], t[63:72]]) for t in by_token[name]])
            np.testing.assert_allclose(group, late.mean(), rtol=1e-4)
            assert at.position_tokens.sel(position=32) == len(late)
        else:
            assert np.isnan(group)
    sums = [np.array([text.sum() for text in texts]) for texts in by_token.values()]
    counts = np.array([len(text) for text in by_token["rope"]])
    mean, error = mean_and_error(sums[1] - sums[0], counts)
    nope = at.sel(rotary="nope")
    np.testing.assert_allclose([nope.difference, nope.difference_se], [mean, error], rtol=1e-3)
    np.testing.assert_allclose(nope.difference_interval, 2.4469119 * error, rtol=1e-3)  # t, 6
    loss, half = sums[1].sum() / counts.sum(), 2.4469119 * mean_and_error(sums[1], counts)[1]
    perplexities = [nope.perplexity, nope.perplexity_low, nope.perplexity_high]
    np.testing.assert_allclose(perplexities, np.exp([loss, loss - half, loss + half]), rtol=1e-3)


def test_what_is_said_of_the_text(losses):
    assert (losses.documents, losses.tokens, losses.context) == (7, 215, 40)
    assert losses.across == MASKED and losses.trained_length == 16
    assert losses.document_tokens.values.tolist() == [90, 1, 33, 8, 64, 2, 17]
    assert (losses.position_tokens.sum("position") == 215).all()
    assert not losses.difference.sel(rotary="rope").any()


@pytest.mark.parametrize("trained, longest", [(16, 40), (1, 1), (1000, 3), (12, 12), (7, 4096)])
def test_groups_of_positions(trained, longest):
    groups = position_groups(trained, longest)
    assert groups[-1] == longest and groups[0] >= 1 and (np.diff(groups) > 0).all()
    assert trained >= longest or trained in groups


def test_joined_windows_read_what_lies_before(losses):
    """The first document is read as by itself, later ones are not."""
    with warnings.catch_warnings(action="ignore"):
        joined = evaluate_documents(MODELS, DOCUMENTS, [1000], across=JOINED)
        masked = evaluate_documents(MODELS, DOCUMENTS, [1000])
    np.testing.assert_allclose(joined.document_loss[..., 0], masked.document_loss[..., 0], 1e-4)
    assert (abs(joined.document_loss[0, 0, 2:] - masked.document_loss[0, 0, 2:]) > 1e-3).all()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"lengths": []}, r"lengths=\[\] of 2 encoding"),
        ({"lengths": [8, 8]}, "each length once"),
        ({"across": "mask"}, r"neither 'joined' nor 'masked'\. Did you mean 'masked'"),
        ({"models": {"x": (MODELS["rope"][0], {})}}, "params .* give the parameters of this"),
    ],
)
def test_what_cannot_be_evaluated(changed, message):
    good = {"models": MODELS, "documents": DOCUMENTS, "lengths": [8]}
    with pytest.raises(UserError, match=message):
        evaluate_documents(**good | changed)


def test_the_table_marks_what_is_beyond_the_trained_length(losses):
    shown = table(losses)
    assert re.search(
        r"\| rope +\| 12 +\| \d\.\d{4} ± \d\.\d{4} \| [\d.]+ \([\d.]+ to [\d.]+\) +\| - ", shown
    )
    assert re.search(r"\| nope +\| 40 \* +\|.*\| [+-]\d\.\d{4} ± \d\.\d{4} +\|", shown)
    assert re.search(r"\| 12 to 16 +\|", shown) and re.search(r"\| 17 to 23 \* +\|", shown)
    assert "beyond the 16 tokens" in shown and "beyond" not in table(
        losses.drop_attrs().assign_attrs(
            {name: value for name, value in losses.attrs.items() if name != "trained_length"}
        )
    )


# --- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    write_run(folder, random_parameters(CONFIG))
    return f"--checkpoint={folder}"


def test_the_command_writes_what_it_prints(run, texts, tmp_path, capfd):
    more = ["--rotary=trained", "--rotary=nope", "--lengths=16,32", "--texts=9"]
    assert not run_command(evaluate.main, run, f"--data={texts}", *more, f"--out={tmp_path / 'o'}")
    shown = capfd.readouterr().out
    assert (tmp_path / "o" / "table.md").read_text() in shown
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "evaluation.nc", "table.md", "loss_by_position.png",
    }  # fmt: skip
    written = xarray.load_dataset(tmp_path / "o" / "evaluation.nc")
    assert written.rotary.values.tolist() == ["rope(theta=10000)", "nope()"]
    assert written.sizes["document"] == 9 and written.checkpoint in run


@pytest.mark.parametrize(
    "flag, message",
    [
        (
            "--rotary=rope",
            r"rotary='rope' is rope\(theta=10000\), which is given twice; set --rotary",
        ),
        ("--rotary=learned_rope", "rotary='learned_rope' needs .* set --rotary"),
        ("--lengths=16,x", "lengths='16,x' must be whole numbers.*; set --lengths"),
        ("--lengths=0", "lengths=0 must be an integer.*; set --lengths"),
        ("--documents=apart", "documents='apart' is neither 'joined' nor 'masked'"),
        ("--data=absent", "'absent' is no file or folder .*; set --data"),
        ("--held_out=1.5", "held_out=1.5 must be a fraction between 0 and 1; set --held_out"),
        ("--out=.", "is not empty; .*set --out"),
    ],
)
def test_wrong_flags(run, texts, flag, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    usual = [run, f"--data={texts}", "--rotary=trained"]
    assert run_command(evaluate.main, *usual, flag) == 2
    check_one_line(capfd, message)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_store_is_read_on_its_held_out_side(tmp_path, texts):
    corpus = data.load_corpus(data.DataSettings(str(texts), "bytes", 0.3, 16, 2))
    documents = load_documents(str(texts), data.ByteTokenizer())
    _, held_out = data.split(data.read_documents(str(texts)), 0.3)
    assert len(documents.starts) == 200 and len(held_out) < 100
    (folder,) = (p for p in (data.corpus.cache_folder()).iterdir() if holds(p, corpus.fingerprint))
    from_store = load_documents(str(folder), data.ByteTokenizer())
    np.testing.assert_array_equal(from_store.tokens, corpus.held_out)
    assert len(from_store.starts) == len(held_out)
    from_texts = load_documents(str(texts), data.ByteTokenizer(), held_out=0.3)
    np.testing.assert_array_equal(from_texts.tokens, from_store.tokens)
    with pytest.raises(UserError, match=r"held_out=0.3, but .* is a store"):
        load_documents(str(folder), data.ByteTokenizer(), held_out=0.3)
    with pytest.raises(UserError, match="were not made by tokenizer"):
        load_documents(str(folder), Other())


def holds(folder, fingerprint):
    return data.open_store(folder).index["fingerprint"] == fingerprint


class Other(data.ByteTokenizer):
    """With ids of its own."""

    fingerprint = "of another"
