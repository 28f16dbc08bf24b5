"""Stores under a corpus: what is refused, the cache of texts, and weights that reach the loss."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_config
from test_prepare import jsonl, make, read, texts

from rope_study import data, sharding
from rope_study.data import corpus as corpora
from rope_study.errors import UserError
from rope_study.training import settings, trainer
from rope_study.training.evaluate import Evaluation, evaluate

SETTINGS = data.DataSettings("", "bytes", held_out=0.2, length=16, batch_size=4)


def load(path, **changes):
    return data.load_corpus(dataclasses.replace(SETTINGS, path=str(path), **changes))


@pytest.fixture
def prepared(tmp_path):
    pytest.importorskip("rensa")
    return make(tmp_path, jsonl(texts(60)))


def test_a_store_is_the_corpus_of_its_texts(prepared, tmp_path):
    """The same run goes on from texts to a store of them: fingerprint and batches are the same."""
    from_store, from_texts = load(prepared.folder), load(tmp_path / "a.jsonl")
    assert isinstance(from_store.train, np.memmap)
    assert from_store.fingerprint == from_texts.fingerprint
    for step in (0, 7, 5000):
        batch = from_texts.train_batches(3).batch(step)
        np.testing.assert_array_equal(from_store.train_batches(3).batch(step), batch)
    rows = [list(corpus.held_out_batches(9)) for corpus in (from_store, from_texts)]
    np.testing.assert_array_equal(rows[0][0][0], rows[1][0][0])


def test_batches_read_only_their_rows(prepared):
    """In places all over the file, and no others: a large store is never read whole."""
    read_slices = []

    class Spy:
        def __len__(self):
            return 10**12

        def __getitem__(self, place):
            read_slices.append(place)
            return np.zeros(place.stop - place.start, np.uint16)

    batches = data.TrainBatches(Spy(), 2**20, 64, 0, 256)
    assert batches.rows(3, 10, 12).shape == (2, 2**20 + 1)
    assert len(read_slices) == 2 and read_slices[0].start != read_slices[1].start
    with pytest.raises(UserError, match="windows of this length=5"):
        data.TrainBatches(Spy(), 2, 64, 0, 256)  # Grain's permutation has 32 bits


@pytest.mark.parametrize("file", ["train.tokens", "held_out.starts"])
def test_a_store_that_was_cut_short_or_changed_is_refused(prepared, file):
    path = prepared.folder / file
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(UserError, match=f"{file} has .* bytes, the index says"):
        load(prepared.folder)
    path.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(UserError, match=f"{file} is damaged"):
        load(prepared.folder)
    path.unlink()
    with pytest.raises(UserError, match=f"{file}: it does not exist"):
        load(prepared.folder)


def test_a_store_of_another_tokenizer_split_or_version_is_refused(prepared, monkeypatch):
    class Other(data.ByteTokenizer):
        fingerprint = "another"

    with pytest.raises(UserError, match=r"held_out=0.3, but .* was made with 0.2") as caught:
        load(prepared.folder, held_out=0.3)
    assert caught.value.argument == "held_out"
    monkeypatch.setattr(corpora, "load_tokenizer", lambda _: Other())
    with pytest.raises(UserError, match="the store's own is 'bytes'") as caught:
        load(prepared.folder)
    assert caught.value.argument == "tokenizer"
    index = prepared.folder / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        data.open_store(prepared.folder)
    index.unlink()
    (prepared.folder / "journal.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="not finished: give the same command"):
        load(prepared.folder)


# --- texts ------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return corpora.cache_folder


def test_texts_are_tokenized_once(tmp_path, cache, monkeypatch):
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl(texts(60)))
    first = load(file)
    monkeypatch.setattr(data.ByteTokenizer, "_encode", lambda *_: pytest.fail("tokenized again"))
    second = load(file, length=8)
    assert isinstance(second.train, np.memmap) and not isinstance(first.train, np.memmap)
    np.testing.assert_array_equal(first.train, second.train)
    np.testing.assert_array_equal(first.held_out, second.held_out)
    assert first.fingerprint == second.fingerprint
    assert len(list(cache().iterdir())) == 1


def test_other_texts_or_a_damaged_cache_are_tokenized_again(tmp_path, cache):
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl(texts(60)))
    first = load(file)
    load(file, held_out=0.3)
    file.write_bytes(jsonl(texts(61)))
    assert len(load(file).train) > len(first.train)
    assert len(list(cache().iterdir())) == 3
    file.write_bytes(jsonl(texts(60)))
    stores = {path: read(path) for path in cache().iterdir()}
    for path in stores:
        content = (path / "train.tokens").read_bytes()
        (path / "train.tokens").write_bytes(content[:-1] + b"\x7f")
    np.testing.assert_array_equal(load(file).train, first.train)
    assert sum(read(path) == stores[path] for path in stores) == 1


def test_without_a_cache_the_run_goes_on(tmp_path, cache, capfd):
    (tmp_path / "cache").write_text("a file where the folder would be")
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts(60)))
    assert len(load(tmp_path / "a.jsonl").train)
    assert "tokens are not kept for the next start" in capfd.readouterr().err


# --- weights ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    pytest.importorskip("rensa")
    rows = [{"inputs": f"Add {i}?", "targets": f"{2 * i}, I say."} for i in range(200)]
    folder = tmp_path_factory.mktemp("instructions")
    return make(folder, jsonl(rows), field="inputs,targets").folder


def test_weights_follow_their_windows(instructions):
    corpus = load(instructions)
    side = data.open_store(instructions).train
    weights = side.weights(0, len(side.tokens))
    batches = corpus.train_batches(1)
    windows, of_targets = batches.rows(5, 1, 4), batches.weights(5, 1, 4)
    assert of_targets.shape == (3, 16) and 0 < of_targets.mean() < 1
    tokens = np.asarray(side.tokens)
    for window, row in zip(windows, of_targets, strict=True):
        starts = range(0, len(tokens) - 16, 16)
        fits = [i for i in starts if np.array_equal(tokens[i : i + 16], window[1:])]
        assert any(np.array_equal(weights[i : i + 16], row) for i in fits)
    assert all((w == w[:, :1]).all() for _, w in corpus.held_out_batches(5))
    assert any((w[:, 1:] < w[:, :1]).any() for _, w in corpus.evaluation_batches(5))


def test_only_targets_count_in_training_and_evaluation(instructions, tmp_path):
    """A step's loss is the mean over targets, and what prompts hold is not learned to say."""
    config = tiny_config.get_config()
    config.data.update({"path": str(instructions), "held_out": 0.2, "length": 16, "batch_size": 4})
    config.workdir = str(tmp_path / "run")
    config.train.steps = 1
    (run,) = settings.resolve_one(config).runs
    corpus = data.load_corpus(run.data)
    decoder, params = trainer.train(run, corpus, sharding.one_device())
    held_out = evaluate(decoder, params, corpus.evaluation_batches(0))
    weights = held_out.weights
    assert weights is not None and held_out.tokens == weights.sum()
    assert held_out.loss == pytest.approx((held_out.losses * weights).sum() / weights.sum())
    assert held_out.mean_and_error()[0] == pytest.approx(held_out.loss)
    line = json.loads((run.folder / "metrics.jsonl").read_text())
    batches = corpus.train_batches(run.seed)
    untrained = trainer.Trainer(decoder, run.train, run.seed).init().params
    first = batches.batch(0), np.insert(batches.weights(0, 0, 4), 0, 1, axis=1)
    before = evaluate(decoder, untrained, [first])
    assert line["loss"] == pytest.approx(before.loss, rel=1e-5)
    assert line["loss"] != pytest.approx(Evaluation(before.losses).loss, rel=1e-3)
