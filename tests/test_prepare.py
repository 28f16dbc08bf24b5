"""Preparation: every format in, the same bytes out however it is done, and no silent loss."""

import bz2
import gzip
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import check_one_line, run_command

from rope_study import data, prepare
from rope_study.data.preparation import near_duplicates, streams
from rope_study.data.preparation import run as preparation
from rope_study.errors import UserError

pytest.importorskip("rensa")
BOS = 256
WORDS = "of the and in to was is for as on with by he that at from his it an were".split()


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [f"Document {i}. " + " ".join(rng.choice(WORDS, 60)) for i in range(count)]


def jsonl(rows):
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def make(folder, content, name="a.jsonl", out="store", **changes):
    """The store of one file."""
    file = folder / name
    file.write_bytes(content)
    settings = {"tokenizer": "bytes", "workers": 1, "held_out": 0.2, "block": 2000}
    index = preparation.prepare(
        preparation.Settings(**{**settings, "input": str(file), "out": folder / out, **changes})
    )
    return data.open_store(folder / out) if "files" in index else index


def documents(side):
    """The texts of a side of a store of bytes, in order."""
    ends = [*side.starts[1:].tolist(), len(side.tokens)]
    tokenizer = data.ByteTokenizer()
    rows = [side.tokens[int(a) : b] for a, b in zip(side.starts, ends, strict=True)]
    assert all(row[0] == BOS for row in rows)
    return [tokenizer.decode(row[1:].astype(np.int32)) for row in rows]


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- a store of texts -------------------------------------------------------------------------


def test_a_store_is_the_split_of_its_documents(tmp_path):
    rows = [*texts(60), "", " \n"]
    store = make(tmp_path, jsonl(rows))
    train, held_out = data.split(texts(60), 0.2)
    assert (documents(store.train), documents(store.held_out)) == (train, held_out)
    assert store.index["fingerprint"] == data.fingerprint(train, held_out)
    assert store.index["counts"]["skipped: empty"] == 2
    assert store.train.tokens.dtype == np.uint16 and store.train.prompts is None
    assert sorted(read(tmp_path / "store")) == sorted([*store.index["files"], "index.json"])
    store.check_contents()


def test_neither_workers_nor_shards_change_a_byte(tmp_path):
    content = jsonl(texts(100))
    make(tmp_path, content, out="one")
    make(tmp_path, content, out="two", workers=2)
    assert read(tmp_path / "one") == read(tmp_path / "two")
    for k in (3, 1, 2):
        counts = make(tmp_path, content, out="parts", shard=(k, 3))
        assert 0 < counts["documents"] < 100
    preparation.join(tmp_path / "parts", "bytes")
    assert read(tmp_path / "one") == read(tmp_path / "parts")


def test_shards_deal_whole_files_where_there_are_enough(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.jsonl").write_bytes(jsonl(texts(20, seed=i)))
    for out, shards in (("one", [None]), ("parts", [(1, 2), (2, 2)])):
        for shard in shards:
            settings = preparation.Settings(
                str(tmp_path / "*.jsonl"),
                tmp_path / out,
                "bytes",
                workers=1,
                shard=shard,
                block=500,
            )
            preparation.prepare(settings)
    preparation.join(tmp_path / "parts", "bytes")
    assert read(tmp_path / "one") == read(tmp_path / "parts")


def test_shards_that_do_not_fit_are_refused(tmp_path):
    content, parts = jsonl(texts(40)), tmp_path / "parts"
    with pytest.raises(UserError, match="holds no shards"):
        preparation.join(parts, "bytes")
    make(tmp_path, content, out="parts", shard=(1, 2))
    with pytest.raises(UserError, match="lacks shard 2/2"):
        preparation.join(parts, "bytes")
    make(tmp_path, content, out="parts", shard=(2, 2), held_out=0.3)
    with pytest.raises(UserError, match=r"2-of-2 holds another .*held_out"):
        preparation.join(parts, "bytes")


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL while it writes, several times; the files then have more than the journal knows."""
    content, folder = jsonl(texts(4000)), tmp_path / "killed"
    make(tmp_path, content, out="whole", block=2048)
    command = [sys.executable, "-m", "rope_study.prepare", "--tokenizer=bytes", "--held_out=0.2"]
    command += [f"--input={tmp_path / 'a.jsonl'}", f"--out={folder}", "--workers=2"]
    command += [f"--block_mb={2048 / 2**20}"]
    journal = folder / "journal.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=Path(__file__).parent.parent)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(UserError, match="not finished: give the same command"):
        data.open_store(folder)
    done = journal.read_bytes().count(b"\n")
    assert done < len(content) // 2048, "it was killed before the end"
    for name in ("train.tokens", "held_out.digests", "journal.jsonl"):  # and inside a write
        with (folder / name).open("ab") as file:
            file.write(b'{"file": 0, "un')
    make(tmp_path, content, out="killed", block=2048)
    assert read(folder) == read(tmp_path / "whole")


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """Also where it is killed, and can tell them nothing."""
    code = "from rope_study.data.preparation import encode; import multiprocessing as m, time\n"
    code += "if __name__ == '__main__':\n"
    code += " w = m.get_context('spawn').Process(target=encode._end_with_parent); w.start()\n"
    code += " print(w.pid, flush=True); time.sleep(60)"
    script = tmp_path / "start.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(3000):
        stat = Path(f"/proc/{worker}/stat")
        if not stat.exists() or ") Z " in stat.read_text():
            return
        time.sleep(0.01)
    pytest.fail("the worker outlives its parent")


def test_another_folder_or_other_settings_are_refused(tmp_path):
    make(tmp_path, jsonl(texts(40)))
    before = read(tmp_path / "store")
    make(tmp_path, jsonl(texts(40)))  # finished already
    for changes in ({"held_out": 0.3}, {"field": "body"}, {"near_duplicates": "drop"}):
        with pytest.raises(UserError, match=f"holds another store .*{next(iter(changes))}"):
            make(tmp_path, jsonl(texts(40)), **changes)
    with pytest.raises(UserError, match=r"holds another store .*input"):
        make(tmp_path, jsonl(texts(41)))
    assert read(tmp_path / "store") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no store; nothing was changed"):
        make(tmp_path, jsonl(texts(40)), out="other")


def test_one_document_is_split_by_its_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(data.documents, "MAX_CHARACTERS", 500)
    text = "\n\n".join(texts(40))
    store = make(tmp_path, text.encode(), name="book.txt")
    assert (documents(store.train), documents(store.held_out)) == data.split([text], 0.2)
    assert read(tmp_path / "store") == read(make(tmp_path, text.encode(), "book.txt").folder)


# --- formats ----------------------------------------------------------------------------------


def zst(content):
    return pytest.importorskip("zstandard").compress(content)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
@pytest.mark.parametrize(
    "ending, compress",
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zst),
    ],
)
def test_compressed_json_lines(tmp_path, name, ending, compress):
    half = len(content := jsonl(texts(40))) // 2
    # Two streams one after the other, as parallel compressors write them.
    store = make(tmp_path, compress(content[:half]) + compress(content[half:]), name + ending)
    assert documents(store.train) == data.split(texts(40), 0.2)[0]


def test_a_list_in_json_and_another_field(tmp_path):
    rows = [{"id": i, "body": text} for i, text in enumerate(texts(40))]
    store = make(tmp_path, json.dumps(rows, indent=1).encode(), "a.json", field="body")
    assert documents(store.train) == data.split(texts(40), 0.2)[0]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather", "stream.arrow"])
def test_tables(tmp_path, kind):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"id": range(41), "text": [*texts(40), None]})
    sink = arrow.BufferOutputStream()
    if kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, sink, row_group_size=15)
    else:
        new = arrow.ipc.new_stream if kind.startswith("stream") else arrow.ipc.new_file
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=15)
    content = sink.getvalue().to_pybytes()
    store = make(tmp_path, content, f"a.{kind}")
    assert documents(store.train) == data.split(texts(40), 0.2)[0]
    assert store.index["counts"]["skipped: empty"] == 1
    with pytest.raises(UserError, match="no column 'body'; there are id, text"):
        make(tmp_path, content, f"a.{kind}", out="other", field="body")
    with pytest.raises(UserError, match=f"a.{kind}' cannot be read"):
        make(tmp_path, content[: len(content) // 2], f"a.{kind}", out="third")


@pytest.mark.parametrize("dtype, other", [("uint16", "uint32"), ("int32", None)])
def test_flat_tokens_of_others(tmp_path, dtype, other):
    tokens = data.tokenize(texts(40), data.ByteTokenizer())
    content = np.append(tokens, tokens[0]).astype(dtype).tobytes()
    assert len(tokens) % 2, "so that two uint16 are read as one uint32"
    store = make(tmp_path, content, "a.bin", token_dtype=dtype)
    assert {*documents(store.train), *documents(store.held_out)} == {*texts(40)}
    with pytest.raises(UserError, match="one of uint16, uint32, int32"):
        make(tmp_path, content, "a.bin", out="other")
    if other:
        with pytest.raises(UserError, match=r"has id \d+, the tokenizer has 0..256"):
            make(tmp_path, content, "a.bin", out="wrong", token_dtype=other)
    with pytest.raises(UserError, match="ends inside a token"):
        make(tmp_path, content[:-1], "a.bin", out="cut", token_dtype=dtype)


def test_rows_of_tokens_in_array_record(tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module")
    file = tmp_path / "a.array_record"
    writer = module.ArrayRecordWriter(str(file), "group_size:1")
    for text in texts(300):
        writer.write(data.ByteTokenizer().encode_document(text).astype("<i4").tobytes())
    writer.write(b"odd")
    writer.close()
    with pytest.raises(UserError, match="record 301: 3 bytes are no row of int32"):
        make(tmp_path, file.read_bytes(), file.name)
    store = make(tmp_path, file.read_bytes(), file.name, skip_bad=True)
    assert {*documents(store.train), *documents(store.held_out)} == {*texts(300)}


# --- instructions -----------------------------------------------------------------------------


def test_loss_of_instructions_counts_on_targets(tmp_path):
    rows = [{"inputs": f"Add {i} and {i}.", "targets": str(2 * i)} for i in range(60)]
    store = make(tmp_path, jsonl(rows), field="inputs,targets")
    side = store.train
    weights = side.weights(0, len(side.tokens))
    counted = data.ByteTokenizer().decode(side.tokens[weights > 0].astype(np.int32))
    train = documents(side)
    assert counted == "".join(text.split("\n")[1] for text in train)
    assert weights[side.starts.astype(int)].all(), "BOS is the end of the document before"
    for first, last in [(0, 7), (5, 6), (3, 200), (len(weights) - 4, len(weights))]:
        np.testing.assert_array_equal(side.weights(first, last), weights[first:last])
    everything = make(tmp_path, jsonl(rows), out="all", field="inputs,targets", loss="all")
    assert everything.train.prompts is None and documents(everything.train) == train


# --- what is wrong ----------------------------------------------------------------------------

GOOD = jsonl(texts(40))


@pytest.mark.parametrize(
    "bad, message, reason",
    [
        (b'{"text": "half a li', "record 41: not JSON", "not JSON"),
        (b'{"text": "caf\xe9"}\n', "record 41: not JSON .UnicodeDecodeError", "not JSON"),
        (b'{"text": "\\ud800"}\n', "record 41: .*lone surrogate", "not UTF-8"),
        (b'{"body": "x"}\n', "no field 'text'; it has body", "no field"),
        (b'{"text": 5}\n', "field 'text' is of type int", "no text"),
        (b"[1]\n", "a list, no object", "no field"),
    ],
)
def test_wrong_records_stop_or_are_counted(tmp_path, bad, message, reason):
    with pytest.raises(UserError, match=message) as caught:
        make(tmp_path, GOOD + bad)
    assert caught.value.argument == "skip_bad"
    assert not (tmp_path / "store" / "index.json").exists()
    store = make(tmp_path, GOOD + bad, skip_bad=True)  # it goes on
    assert store.index["counts"][f"skipped: {reason}"] == 1
    assert re.search(message, store.index["examples"][reason])
    assert documents(store.train) == data.split(texts(40), 0.2)[0]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl.bz2", bz2.compress(GOOD)[:-20], "cannot be read .*ended before"),
        ("a.jsonl.bz2", b"BZh9" + b"x" * 99, "cannot be read"),
        ("a.jsonl.gz", gzip.compress(GOOD)[:-20], "cannot be read"),
        ("a.jsonl.xz", lzma.compress(GOOD)[:-20], "cannot be read"),
        ("a.jsonl.zst", GOOD, "cannot be read"),
        ("a.jsonl", gzip.compress(GOOD), "compressed by gzip: let its name end in .gz"),
        ("a.txt", b"caf\xe9", "not UTF-8: wrong byte at offset 3"),
        ("a.csv", b"text", "is a table"),
        ("a.parquet", b"nothing", "cannot be read"),
        ("a.array_record", b"nothing", "cannot be read"),
        ("a.xml", GOOD, "is no Wikipedia dump"),
        ("a.jsonl", b"", "0 documents to train on and 0 held out"),
        ("a.jsonl", jsonl([" "] * 3), "both need one. Left out: empty 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_error(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path, content, name)
    assert not (tmp_path / "store" / "index.json").exists()


def test_a_frame_of_zstd_that_is_cut_short(tmp_path):
    """The library's own reader takes it for the end."""
    with pytest.raises(UserError, match="ends inside a frame"):
        make(tmp_path, zst(GOOD)[:-20], "a.jsonl.zst")


def test_a_long_document_is_read_and_a_longer_one_refused(tmp_path, monkeypatch):
    long = "word " * 400_000
    store = make(tmp_path, jsonl([*texts(40), long]))
    assert long in "".join(documents(store.train)) + "|" + "".join(documents(store.held_out))
    monkeypatch.setattr(streams, "MAX_RECORD", 2**20)
    with pytest.raises(UserError, match="record 41 is longer than 1 MB"):
        make(tmp_path, jsonl([*texts(40), long]), out="other")


def test_files_of_several_formats_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    with pytest.raises(UserError, match=r"several formats \(text: a.txt; JSON Lines: b.jsonl\)"):
        preparation.find_input(str(tmp_path))


@pytest.mark.parametrize(
    "argument, value",
    [("held_out", 1.0), ("loss", "both"), ("near_duplicates", "keep"), ("token_dtype", "int8"),
     ("field", "a,b,c"), ("field", "a,")],
)  # fmt: skip
def test_settings_are_checked_first(tmp_path, argument, value):
    with pytest.raises(UserError, match=f"^{argument}=") as caught:
        preparation.Settings("a.jsonl", tmp_path, "bytes", **{argument: value})
    assert caught.value.argument == argument


# --- near-duplicates --------------------------------------------------------------------------


def test_near_duplicates_across_the_split_are_found_and_dropped(tmp_path):
    rows = texts(60)
    _, held_out = data.split(rows, 0.2)
    copies = [f"{text} the" for text in held_out]
    copied = [old for old, copy in zip(held_out, copies, strict=True)
              if data.documents.is_held_out(copy, 0.2) is False]  # fmt: skip
    assert 2 < len(copied) <= len(held_out)
    store = make(tmp_path, jsonl([*rows, *copies]))
    assert store.index["counts"]["near-duplicates"] == len(copied)
    dropped = make(tmp_path, jsonl([*rows, *copies]), out="dropped", near_duplicates="drop")
    assert documents(dropped.train) == documents(store.train)
    kept = [text for text in documents(store.held_out) if text not in copied]
    assert documents(dropped.held_out) == kept
    assert dropped.index["fingerprint"] == data.fingerprint(documents(store.train), kept)


def test_signatures_estimate_the_jaccard_similarity():
    words = [f"w{i}" for i in range(1004)]
    half = [*words[:502], *(f"v{i}" for i in range(502))]
    a, b = near_duplicates.signatures([" ".join(words), " ".join(half)])
    assert abs(np.mean(a == b) - 498 / 1502) < 0.2
    found = near_duplicates.find(np.stack([a, b]), np.stack([b]))
    assert found.tolist() == [False, True]


# --- the command ------------------------------------------------------------------------------


def test_the_command_says_what_is_in_the_store(tmp_path, capfd):
    (tmp_path / "a.jsonl").write_bytes(jsonl([*texts(60), ""]))
    paths = f"--input={tmp_path / 'a.jsonl'}", f"--out={tmp_path / 'store'}"
    assert run_command(prepare.main, *paths, "--tokenizer=bytes", "--workers=1") == 0
    out, err = capfd.readouterr()
    assert re.search(r"tokens to train on in \d+ documents, .* held out in \d+; 0 near-dup", out)
    assert "left out 1: empty" in err and "100%" in err


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "no input: give one, as in --input=wiki.xml.bz2"),
        (["--input=a.jsonl"], "no tokenizer: give one"),
        (["--input=a.jsonl", "--tokenizer=bytes"], "no out: give one"),
        (["--input=a.jsonl", "--tokenizer=bytes", "--out=x", "--shard=4/3"], "shard='4/3' must be"),
        (["--input=none.jsonl", "--tokenizer=bytes", "--out=x"], "none.jsonl' is no file"),
        (["--join", "--out=x", "--tokenizer=bytes"], "x/shards holds no shards"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, capfd, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run_command(prepare.main, *flags) == 2
    check_one_line(capfd, message)
    assert not any(tmp_path.iterdir())


def test_a_tokenizer_is_trained_with_the_conventions_of_gemma(tmp_path, capfd):
    (tmp_path / "a.jsonl").write_bytes(
        jsonl([text + f"  {i}\n" for i, text in enumerate(texts(300))])
    )
    model = tmp_path / "small.model"
    flags = [f"--input={tmp_path / 'a.jsonl'}", f"--tokenizer={model}", "--train_tokenizer=360"]
    assert run_command(prepare.main, *flags, f"--out={tmp_path / 'store'}", "--workers=1") == 0
    tokenizer = data.load_tokenizer(tmp_path / "store")
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eos) == (360, 2, 1)
    assert tokenizer.pieces(tokenizer.encode("17")) == ["1", "7"]
    for text in ("  two spaces\n\n", "\u6f22\u5b57", ""):
        assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    before = model.read_bytes()
    assert run_command(prepare.main, *flags) == 0 and model.read_bytes() == before
    assert run_command(prepare.main, *flags[:2], "--train_tokenizer=500") == 2
    check_one_line(capfd, "exists with another size than 500; nothing was changed")
