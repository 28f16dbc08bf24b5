"""Data: what is read, how it is split, and batches by (seed, step)."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pytest
from numcodecs import zstd

from rope_study import data
from rope_study.data import documents
from rope_study.errors import UserError

BOS = 256


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def jsonl(*texts):
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def refuse(argument, message, function, *args, **kwargs):
    """The call raises a UserError with that message, which names the argument to change."""
    with pytest.raises(UserError, match=f"(?s){message}") as caught:
        function(*args, **kwargs)
    assert caught.value.argument == argument


# --- sources ----------------------------------------------------------------------------------


def test_default_corpus_is_large_stable_and_splits():
    texts = data.read_documents("python")
    assert sum(map(len, texts)) > 2_000_000
    assert any('The "if" statement' in text for text in texts), "topics"
    assert any("class JSONDecoder" in text for text in texts), "sources of packages"
    assert not any("class TestCopy" in text for text in texts), "tests left out"
    train, held_out = data.split(texts, 0.02)
    assert train and held_out and len(train) + len(held_out) == len(data.pieces(texts))
    assert data.read_documents("python") == texts


def test_python_corpus_leaves_out_what_is_no_package(tmp_path, monkeypatch):
    for file in ("a.py", "json/b.py", "test/c.py", "json/tests/d.py", "site-packages/e.py"):
        write(tmp_path / file, f"text of {file}")
    for file in (".hidden/f.py", "config-3.11-x/g.py", "tkinter/h.py", "json/i.txt"):
        write(tmp_path / file, f"text of {file}")
    monkeypatch.setattr(documents.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    texts = [text for text in data.read_documents("python") if text.startswith("text of")]
    assert texts == ["text of a.py", "text of json/b.py"]


def test_folder_glob_and_file_are_read_in_order(tmp_path):
    for name in ("b.txt", "a.md", "sub/deep/c.py", "sub/e.TXT", "picture.png"):
        write(tmp_path / name, f"text of {name}")
    texts = ["text of a.md", "text of b.txt", "text of sub/deep/c.py", "text of sub/e.TXT"]
    assert data.read_documents(str(tmp_path)) == texts
    assert data.read_documents(str(tmp_path / "*")) == [*texts[:2], "text of picture.png"]
    assert data.read_documents(str(tmp_path / "**" / "*.py")) == ["text of sub/deep/c.py"]
    assert data.read_documents(str(tmp_path / "b.txt")) == ["text of b.txt"]


@pytest.mark.parametrize(
    "ending, compress",
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstd.compress),
    ],
)
@pytest.mark.parametrize("lines", ["jsonl", "ndjson", "jsonlines", "JSONL"])
def test_compressed_json_lines_and_text(tmp_path, lines, ending, compress):
    # U+2028 ends a line for str.splitlines, but not in JSON Lines.
    texts = ["first\nline", "caf\u00e9 \u2028 \u6f22"]
    write(tmp_path / f"a.{lines}{ending}", compress((jsonl(*texts) + "\n").encode()))
    write(tmp_path / f"b.txt{ending}", compress(b"plain"))
    assert data.read_documents(str(tmp_path / f"a.{lines}{ending}")) == texts
    assert data.read_documents(str(tmp_path)) == [*texts, "plain"]


@pytest.mark.parametrize(
    "content",
    [
        jsonl("one", "two"),
        json.dumps([{"text": "one"}, {"text": "two"}], indent=1),
        '{"text":\n"one"}',
    ],
)
def test_json_is_lines_a_list_or_one_document(tmp_path, content):
    """As c4-train.00000-of-01024.json.gz; data.load_texts reads alike."""
    file = write(tmp_path / "c4.json.gz", gzip.compress(content.encode()))
    expected = ["one", "two"][: content.count('"text"')]
    assert data.read_documents(file) == expected
    assert [text.text for text in data.load_texts(file)] == expected


def test_whitespace_byte_order_mark_and_line_ends(tmp_path):
    write(tmp_path / "a.jsonl", jsonl(" \n\t", "kept", ""))
    write(tmp_path / "b.txt", b"\xef\xbb\xbfone\r\ntwo")
    write(tmp_path / "c.txt", "")
    assert data.read_documents(str(tmp_path)) == ["kept", "one\ntwo"]


@pytest.mark.parametrize("boundary", ["\n\n", "\n", ""])
def test_long_texts_are_cut_at_the_best_boundary(tmp_path, monkeypatch, boundary):
    monkeypatch.setattr(documents, "MAX_CHARACTERS", 100)
    # A line end later in the piece must not win over a blank line.
    words = [f"{i}\nand then more" if boundary == "\n\n" else f"word{i}" for i in range(60)]
    text = boundary.join(words)
    pieces = data.pieces(data.read_documents(write(tmp_path / "long.txt", text)))
    assert "".join(pieces) == text
    assert max(len(piece) for piece in pieces) <= 100
    assert len(pieces) <= len(text) / 80 + 1
    assert all(piece.endswith(boundary) for piece in pieces[:-1])


def test_split_never_moves_a_document():
    texts = [f"document {i}" for i in range(2000)]
    train, held_out = data.split(texts, 0.1)
    assert 0.07 < len(held_out) / len(texts) < 0.13
    assert train == [text for text in texts if text in set(train)], "order is kept"
    more_train, more_held_out = data.split(["new", *texts[::-1], "newer", *texts], 0.1)
    assert set(train) <= set(more_train) and set(held_out) <= set(more_held_out)
    assert not set(more_train) & set(more_held_out)
    # The literal value: another Python or machine must split alike.
    assert data.split(list("abcdef"), 0.2) == (["a", "b", "e"], ["c", "d", "f"])


def test_pieces_of_a_document_are_on_one_side(monkeypatch):
    """So that nothing held out continues what was trained on; a single document has to."""
    monkeypatch.setattr(documents, "MAX_CHARACTERS", 20)
    texts = [" ".join(f"{i}:{j}" for j in range(20)) for i in range(50)]
    train, held_out = data.split(texts, 0.2)
    assert len(train) + len(held_out) > 4 * len(texts)
    assert not {t.split(":")[0] for t in train} & {t.split(":")[0] for t in held_out} - {""}
    train, held_out = data.split(["".join(texts)], 0.2)
    assert "".join(sorted(train + held_out)) == "".join(sorted(data.pieces(["".join(texts)])))
    assert train and held_out


def test_fingerprint_sees_text_order_boundaries_and_sides():
    sides = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], ["ab", "d"], ["ab", "c", "x"], ["x"]]
    fingerprints = {data.fingerprint(a, b) for a in sides for b in sides}
    assert len(fingerprints) == len(sides) ** 2
    assert len({data.fingerprint(["a", "b"], ["c"]), data.fingerprint(["a"], ["b", "c"])}) == 2
    # The literal value: a run must be known again on another Python or machine.
    assert data.fingerprint(["ab", "c"], ["d"]) == "6fe006328f14da76"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.txt", None, "missing.txt' is no file or folder and matches none"),
        ("no-*.txt", None, "no-\\*.txt' is no file or folder and matches none"),
        ("empty.txt", "", "empty.txt' holds no text"),
        ("white.jsonl", jsonl(" \n"), "white.jsonl' holds no text"),
        ("latin.txt", b"caf\xe9", "latin.txt' is not UTF-8 text: wrong byte at offset 3"),
        ("mark.txt", b"\xef\xbb\xbfcaf\xe9", "wrong byte at offset 6"),
        ("latin.txt.gz", gzip.compress(b"a\xff", mtime=0), "latin.txt.gz' .*offset 1"),
        ("fake.txt.gz", b"not gzip", "fake.txt.gz' cannot be read"),
        ("cut.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "cut.txt.gz' cannot be read"),
        (
            "bits.txt.gz",
            gzip.compress(b"text", mtime=0)[:10] + b"\xff" * 50,
            "bits.txt.gz' cannot be read",
        ),
        ("fake.txt.xz", b"not xz", "fake.txt.xz' cannot be read"),
        ("a.jsonl", jsonl("x") + "\n{broken", "a.jsonl', line 3: .*JSONDecodeError"),
        ("b.jsonl", '{"inputs": "x"}', "b.jsonl', line 1: .*KeyError: 'text'"),
        ("c.jsonl", jsonl("x") + "[1]", "c.jsonl', line 2"),
        ("d.jsonl", '{"text": 5}', "d.jsonl', line 1"),
        ("e.jsonl", '{"text": "\\ud800"}', "e.jsonl', line 1: .*surrogates"),
        ("f.ndjson", jsonl("x") + "text", "f.ndjson', line 2: not of the form"),
        ("g.json", '[{"text": "x"}, 5]', "g.json', item 2: not of the form"),
        ("h.json", '{"name": "x"}', "h.json', item 1: .*KeyError: 'text'"),
        ("deep.jsonl", "[" * 100_000, "deep.jsonl', line 1: not of the form"),
        ("table.csv", "text\nx", "table.csv' is a table: write its texts as JSON Lines"),
        ("table.tsv.gz", gzip.compress(b"text", mtime=0), "table.tsv.gz' is a table"),
        ("a.zip", b"PK\x03\x04 rest", "a.zip' is no text but a zip archive: unpack it"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c rest", "a.7z' is no text but a 7z archive: unpack it"),
        ("a.lz4", b"\x04\x22\x4d\x18 rest", "a.lz4' is no text but compressed by LZ4: unpack it"),
        ("a.parquet", b"PAR1 rest", "a.parquet' is no text but Parquet: make a store of it"),
        ("a.arrow", b"ARROW1 rest", "a.arrow' is no text but Arrow: make a store of it"),
        ("b.arrow", b"\xff\xff\xff\xff rest", "b.arrow' is no text but Arrow"),
        (
            "a.tar.gz",
            gzip.compress(b"\0" * 257 + b"ustar", mtime=0),
            "a.tar.gz' is no text but a tar",
        ),
        ("a.jsonl.z", zstd.compress(b"x"), "compressed by zstd: let its name end in .zst"),
        ("a.txt", gzip.compress(b"x", mtime=0), "compressed by gzip: let its name end in .gz"),
        ("wide.txt", "text".encode("utf-16"), "UTF-16: convert it to UTF-8"),
        ("cut.txt.zst", zstd.compress(b"text" * 99)[:-9], "cut.txt.zst' cannot be read"),
    ],
)
def test_unreadable_text_names_the_place(tmp_path, name, content, message):
    if content is not None:
        write(tmp_path / name, content)
    refuse("path", message, data.read_documents, str(tmp_path / name))


def test_folder_without_text_and_misspelt_default(tmp_path):
    write(tmp_path / "picture.png", "x")
    refuse("path", "has no file that ends in .txt", data.read_documents, str(tmp_path))
    refuse("path", "Did you mean 'python'", data.read_documents, "pyton")
    refuse("path", "'' is no path", data.read_documents, "")


@pytest.mark.parametrize("held_out", [0, 1, -0.1, 1.5, float("nan"), "0.1", None])
def test_held_out_must_be_a_fraction(held_out):
    refuse("held_out", r"held_out=.*between 0 and 1", data.split, ["a", "b"], held_out)


@pytest.mark.parametrize(
    "held_out, sides", [(1e-9, "2 documents to train on and 0"), (1 - 1e-9, "0 .* and 2 held out")]
)
def test_a_split_needs_both_sides(held_out, sides):
    message = f"{sides}.*change held_out or give more text"
    refuse("held_out", message, data.split, ["a", "b"], held_out)


# --- batches ----------------------------------------------------------------------------------


def stream(n):
    return np.arange(n, dtype=np.uint16) % 256


def test_tokenize_puts_bos_before_each_document(capsys):
    tokenizer = data.ByteTokenizer()
    tokens = data.tokenize(["the cat", "a"], tokenizer)
    expected = [tokenizer.bos, *tokenizer.encode("the cat"), tokenizer.bos, *tokenizer.encode("a")]
    assert tokens.dtype == np.uint16 and tokens.tolist() == expected
    assert capsys.readouterr().err == ""
    data.tokenize(["a"], tokenizer, progress=True)
    assert "tokenize" in capsys.readouterr().err


def test_tokenize_keeps_large_ids():
    class Large(data.ByteTokenizer):
        vocab_size = 2**16 + 1

        def encode(self, text):
            return np.array([2**16], np.int32)

    tokens = data.tokenize(["a"], Large())
    assert tokens.dtype == np.uint32 and tokens.tolist() == [BOS, 2**16]
    Large.vocab_size = 2**16
    assert data.tokenize([], Large()).dtype == np.uint16


def test_windows_reconstruct_the_stream():
    tokens = stream(1005)
    windows = data.Windows(tokens, 10, BOS)
    rows = list(windows)
    assert len(windows) == len(rows) == 100
    assert all(row.shape == (11,) and row.dtype == np.int32 and row[0] == BOS for row in rows)
    np.testing.assert_array_equal(np.concatenate([row[1:] for row in rows]), tokens[:1000])
    for outside in (-1, 100):
        with pytest.raises(IndexError):
            windows[outside]


def test_a_batch_is_a_function_of_seed_and_step():
    tokens = stream(5000)
    batches = data.TrainBatches(tokens, 10, 8, 3, BOS)
    read = [batches.batch(step) for step in range(100)]
    assert read[0].shape == (8, 11) and read[0].dtype == np.int32
    assert all((batch[:, 0] == BOS).all() for batch in read)
    fresh = data.TrainBatches(tokens, 10, 8, 3, BOS)
    for step in (99, 0, 63):
        np.testing.assert_array_equal(fresh.batch(step), read[step])
    reseeded = data.TrainBatches(tokens, 10, 8, 4, BOS)
    assert not np.array_equal(reseeded.batch(0), read[0])
    assert not np.array_equal(read[1], read[0])


def test_rows_are_a_slice_of_the_batch_and_read_nothing_else(monkeypatch):
    batches = data.TrainBatches(stream(5000), 10, 8, 0, BOS)
    batch = batches.batch(7)
    reads = []
    getitem = data.Windows.__getitem__
    monkeypatch.setattr(data.Windows, "__getitem__", lambda w, i: reads.append(i) or getitem(w, i))
    np.testing.assert_array_equal(batches.rows(7, 2, 5), batch[2:5])
    assert len(reads) == 3
    for step, start, stop in [(-1, 0, 1), (0, -1, 1), (0, 0, 9), (0, 3, 3)]:
        with pytest.raises(UserError, match=f"rows {start}:{stop} of step {step}"):
            batches.rows(step, start, stop)


def test_an_epoch_visits_each_window_once_in_its_own_order():
    # 21 windows of one token, the window's own number; batches of 4 straddle the epochs.
    batches = data.TrainBatches(stream(21), 1, 4, 0, BOS)
    visited = np.concatenate([batches.batch(step)[:, 1] for step in range(21)])
    epochs = visited.reshape(4, 21)
    for epoch in epochs:
        assert sorted(epoch) == list(range(21))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert tuple(range(21)) not in {tuple(epoch) for epoch in epochs}


def test_train_batches_refuse():
    data.TrainBatches(stream(80), 10, 8, 0, BOS)
    message = r"has 79 tokens.* needs 80 \(8 rows of 10\).*more text.*batch_size or length"
    refuse("path", message, data.TrainBatches, stream(79), 10, 8, 0, BOS)
    for length, batch_size, seed, setting in [
        (0, 8, 0, "length=0"),
        (1.5, 8, 0, "length=1.5"),
        (10, 0, 0, "batch_size=0"),
        (10, True, 0, "batch_size=True"),
        (10, 8, -1, "seed=-1"),
        (10, 8, 2**32, "seed=4294967296"),
    ]:
        arguments = stream(1000), length, batch_size, seed, BOS
        refuse(setting.split("=")[0], f"^{setting} must be", data.TrainBatches, *arguments)


def test_held_out_visits_all_in_order_and_pads():
    tokens = stream(107)
    batches = list(data.held_out_batches(tokens, 10, 4, BOS))
    by_row = [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    for (_, weights), expected in zip(batches, by_row, strict=True):
        np.testing.assert_array_equal(weights, np.tile(expected, (11, 1)).T)
    assert all(rows.shape == (4, 11) and rows.dtype == np.int32 for rows, _ in batches)
    assert all(weights.dtype == np.float32 for _, weights in batches)
    real_rows = np.concatenate([rows[weights[:, 0] == 1] for rows, weights in batches])
    assert (real_rows[:, 0] == BOS).all()
    np.testing.assert_array_equal(real_rows[:, 1:].ravel(), tokens[:100])
    last = batches[-1][0]
    assert all(any(np.array_equal(row, window) for window in last[:2]) for row in last[2:])


@pytest.mark.parametrize(
    "max_windows, expected",
    [(1, [0]), (4, [0, 2, 5, 7]), (9, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (99, list(range(10)))],
)
def test_held_out_windows_are_evenly_spaced(max_windows, expected):
    batches = data.held_out_batches(stream(10), 1, 3, BOS, max_windows)
    visited = np.concatenate([rows[weights[:, 0] == 1, 1] for rows, weights in batches])
    assert visited.tolist() == expected


def test_held_out_refuses_at_the_call():
    message = "has 9 tokens, one window needs 10: raise held_out"
    refuse("held_out", message, data.held_out_batches, stream(9), 10, 4, BOS)
    refuse("batch_size", "^batch_size=0 ", data.held_out_batches, stream(99), 10, 0, BOS)
    refuse("max_windows", "^max_windows=0 ", data.held_out_batches, stream(99), 10, 4, BOS, 0)


# --- a corpus ---------------------------------------------------------------------------------

SETTINGS = {"path": "", "tokenizer": "bytes", "held_out": 0.2, "length": 8, "batch_size": 4}


def write_corpus(folder):
    return write(folder / "text.jsonl", jsonl(*(f"document number {i}" for i in range(40))))


def load_corpus(path, **changes):
    return data.load_corpus(data.DataSettings(**SETTINGS | {"path": path} | changes))


def test_corpus_is_both_sides_in_tokens(tmp_path):
    path = write_corpus(tmp_path)
    corpus = load_corpus(path)
    train, held_out = data.split(data.read_documents(path), 0.2)
    np.testing.assert_array_equal(corpus.train, data.tokenize(train, corpus.tokenizer))
    np.testing.assert_array_equal(corpus.held_out, data.tokenize(held_out, corpus.tokenizer))
    assert corpus.fingerprint == data.fingerprint(train, held_out)
    expected = data.TrainBatches(corpus.train, 8, 4, 3, BOS).batch(5)
    np.testing.assert_array_equal(corpus.train_batches(3).batch(5), expected)
    weights = [weights[:, 0] for _, weights in corpus.held_out_batches(0)]
    assert np.sum(weights) == len(corpus.held_out) // 8, "0 windows are all"
    assert np.sum([weights[:, 0] for _, weights in corpus.held_out_batches(5)]) == 5


def test_corpus_is_known_by_what_it_holds(tmp_path):
    """Nothing but another text or another side of a document makes it another one."""
    path = write_corpus(tmp_path)
    fingerprint = load_corpus(path).fingerprint
    batching = {"length": 16, "batch_size": 2}
    assert load_corpus(write_corpus(tmp_path / "moved"), **batching).fingerprint == fingerprint
    assert load_corpus(path, held_out=0.4).fingerprint != fingerprint
    new_path = write(tmp_path / "other.jsonl", open(path).read().replace("number 7", "number 77"))
    assert load_corpus(new_path).fingerprint != fingerprint


@pytest.mark.parametrize(
    "argument, value",
    [("held_out", 1), ("held_out", "0.1"), ("length", 1), ("length", 8.0), ("batch_size", 0)],
)
def test_settings_refuse_numbers_out_of_range(argument, value):
    changes = {argument: value}
    refuse(argument, f"^{argument}={value!r} must be", data.DataSettings, **SETTINGS | changes)


def test_corpus_refuses_what_does_not_fill_a_batch_or_a_window(tmp_path):
    path = write_corpus(tmp_path)
    refuse("path", "one batch needs 4000", load_corpus, path, batch_size=500)
    refuse("held_out", "one window needs 300", load_corpus, path, length=300, batch_size=1)
    refuse("seed", "seed=-1", load_corpus(path).train_batches, -1)
