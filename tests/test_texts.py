"""Texts to probe with: what the built-in ones hold, what is read, and what is refused."""

import ast
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from rope_study import data
from rope_study.data import DOMAINS, PASSAGES, Text, load_texts
from rope_study.data.texts import ALLOWED
from rope_study.errors import UserError


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def refused(source):
    """The message, which always ends with what is allowed."""
    with pytest.raises(UserError) as caught:
        load_texts(source)
    message = str(caught.value)
    assert message.endswith(ALLOWED) and message.count(ALLOWED) == 1 and "\n" not in message
    assert caught.value.argument == "texts"
    return message


# --- the built-in texts -----------------------------------------------------------------------


def test_passages_are_ten_distinct_lines_of_30_to_80_words():
    assert len(set(PASSAGES)) == len(PASSAGES) == 10
    for text in PASSAGES:
        assert 30 <= len(text.split()) <= 80, text
        assert text == " ".join(text.split()), "one line, single spaces, nothing around"


def test_passages_hold_what_heads_look_for():
    all_text = " ".join(PASSAGES)
    assert all_text.count("'") >= 50
    for word in ("don't", "it's", "Anna's", "o'clock", "I've", "they're", "she'd", "you'll"):
        assert re.search(rf"\b{word}\b", all_text), word
    assert max(text.count("Bruno") for text in PASSAGES) >= 4, "a repeated name"
    assert max(text.count(";") for text in PASSAGES) >= 6, "a passage of semicolons"
    assert max(text.count("(") for text in PASSAGES) >= 5, "a passage of parentheses"
    assert max(len(re.findall(r"\d+", text)) for text in PASSAGES) >= 10, "numbers and dates"
    assert max(text.count(" said ") for text in PASSAGES) >= 2, "a dialogue"
    for text in PASSAGES:
        assert text.count("(") == text.count(")") and text.count('"') % 2 == 0, text


def test_domains_are_six_of_three_texts():
    assert list(DOMAINS) == ["prose", "italian", "german", "chinese", "code", "arithmetic"]
    texts = [text for texts in DOMAINS.values() for text in texts]
    assert [len(texts) for texts in DOMAINS.values()] == [3] * 6
    assert len(set(texts) | set(PASSAGES)) == 28, "no text stands twice"


def test_each_language_is_itself():
    common = {
        "prose": "the and was it that of had as",
        "italian": "la il non che si una di e le per è",
        "german": "der die das und nicht sie den er es man sich als am",
    }
    for label in common:
        for text in DOMAINS[label]:
            words = re.findall(r"\w+", text.lower())
            counts = {c: sum(w in common[c].split() for w in words) for c in common}
            assert counts.pop(label) >= max(5, 3 * max(counts.values())), text


def test_chinese_is_chinese_and_unspaced():
    for text in DOMAINS["chinese"]:
        ideographs = [c for c in text if "\u4e00" <= c <= "\u9fff"]
        assert len(ideographs) > 0.8 * len(text) and len(text) > 60
        assert not re.search(r"\s", text), "a line end of the source became a space"


def test_code_is_python_and_runs():
    names = {}
    for text in DOMAINS["code"]:
        assert len(ast.parse(text).body) >= 1 and text.endswith("\n")
        exec(text, names)
    assert names["shared_prefix"](["stone", "story", "stop"]) == "sto"
    assert names["shared_prefix"](["a", "ab"]) == "a" and names["shared_prefix"]([]) == ""
    assert names["Account"]("Edith", 5).withdraw(2) == 3
    assert names["distances"]({"a": "bc", "b": "d", "c": "d", "d": ""}, "a")["d"] == 2


def test_arithmetic_is_right():
    statements = [s for t in DOMAINS["arithmetic"] for s in re.split(r"[.;,](?:\s|$)", t) if s]
    assert len(statements) == 10 + 9 + 8
    for statement in statements:
        left, right = statement.removeprefix("so ").split(" = ")
        assert eval(left) == int(right), statement


# --- sources ----------------------------------------------------------------------------------


def test_built_in_sources():
    assert load_texts() == load_texts("default")
    assert load_texts() == [Text(text, None) for text in PASSAGES]
    loaded = load_texts("domains")
    assert len(loaded) == 18
    for label, texts in DOMAINS.items():
        assert tuple(text.text for text in loaded if text.label == label) == texts
    assert [text.label for text in loaded[:4]] == ["prose"] * 3 + ["italian"]


def test_a_text_is_a_value():
    assert len({Text("a", "x"), Text("a", "x"), Text("a", "y"), Text("a")}) == 3
    with pytest.raises(AttributeError):
        Text("a").text = "b"


def test_texts_go_into_the_tokenizer():
    tokens, weights = data.ByteTokenizer().encode_batch([t.text for t in load_texts("domains")])
    assert tokens.shape[0] == 18 and weights[:, 0].all()


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_is_taken_as_it_is(kind):
    texts = [" one\n\ntwo ", "default", "three", "three"]
    assert load_texts(kind(texts)) == [Text(text) for text in texts]


def test_a_text_file_has_one_text_a_paragraph(tmp_path):
    content = "\n\n  indented\nand more  \n \t\n\n\n二\n\nlast, without a line end"
    expected = [Text("  indented\nand more"), Text("二"), Text("last, without a line end")]
    file = write(tmp_path / "a.txt", content)
    assert load_texts(file) == load_texts(str(file)) == expected
    windows = b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode()
    assert load_texts(write(tmp_path / "b.md", windows)) == expected
    assert load_texts(write(tmp_path / "c.txt.gz", gzip.compress(windows))) == expected


def test_jsonl_has_labels_where_given(tmp_path):
    rows = (
        {"text": "one\n\ntwo \u2028 lines", "label": "x"},
        {"text": "plain", "source": "unread"},
        {"text": " kept ", "label": None},
    )
    expected = [Text("one\n\ntwo \u2028 lines", "x"), Text("plain"), Text(" kept ")]
    assert load_texts(write(tmp_path / "a.jsonl", "\n" + jsonl(*rows) + "\n")) == expected
    packed = gzip.compress(jsonl(*rows).encode())
    assert load_texts(write(tmp_path / "b.JSONL.gz", packed)) == expected


def test_a_built_in_name_is_a_file_only_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "default", "from the file")
    assert len(load_texts("default")) == 10
    assert load_texts("./default") == load_texts(Path("default")) == [Text("from the file")]


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", "at home")
    assert load_texts("~/a.txt") == [Text("at home")]


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty.txt", "", "empty.txt.* holds no text"),
        ("white.txt", " \n\t\n\n", "white.txt.* holds no text"),
        ("empty.jsonl", "\n\n", "empty.jsonl.* holds no text"),
        ("latin.txt", b"caf\xe9", "latin.txt' is not UTF-8 text: wrong byte at offset 3"),
        ("latin.jsonl", b'{"text": "\xe9"}', "latin.jsonl' is not UTF-8 text: .*offset 10"),
        ("fake.txt.gz", b"not gzip", "fake.txt.gz' cannot be read"),
        ("a.jsonl", jsonl({"text": "x"}) + "\n{broken", "a.jsonl', line 3: .*JSONDecodeError"),
        ("b.jsonl", '{"inputs": "x"}', "b.jsonl', line 1: .*KeyError: 'text'"),
        ("c.jsonl", jsonl({"text": "x"}) + "[1]", "c.jsonl', line 2: not of the form"),
        ("n.jsonl", "[" * 100_000, "n.jsonl', line 1: not of the form"),
        ("d.jsonl", '{"text": 5}', "d.jsonl', line 1: not of the form"),
        ("e.jsonl", '{"text": "\\ud800"}', "e.jsonl', line 1: .*surrogates"),
        ("f.jsonl", jsonl({"text": "x"}, {"text": " \n"}), "f.jsonl', line 2: .*whitespace"),
        ("g.jsonl", "\n" + jsonl({"text": "x", "label": 5}), "g.jsonl', line 2: label 5 is not"),
        ("h.jsonl", '{"text": "x", "label": "\\ud800"}', "h.jsonl', line 1: label .* is not"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(tmp_path, name, content, message):
    assert re.search(message, refused(write(tmp_path / name, content)))


@pytest.mark.parametrize(
    "source, message",
    [
        ([], r"texts=\[\] holds no text"),
        (["a", ""], r"texts\[1\]: the text is empty"),
        (["a", " \n"], r"texts\[1\]: the text is empty"),
        (["a", 5], r"texts\[1\]=5 is not a string"),
        ([["a"]], r"texts\[0\]=\['a'\] is not a string"),
        (["\ud800"], r"texts\[0\] is not valid Unicode"),
        (b"bytes", "texts=b'bytes' is of type bytes"),
        (5, "texts=5 is of type int"),
        ({"a": ["b"]}, "is of type dict"),
        (np.array(["a", "b"]), "is of type ndarray"),
    ],
)
def test_a_wrong_list_is_named_with_the_place(source, message):
    assert re.match(f".*{message}", refused(source))


def test_one_string_is_no_list():
    assert "give a list with it: [text]" in refused("It's a text.")
    assert "give a list with it: [text]" in refused("")
    # Longer than a file name may be, and with a zero byte, which none may have.
    for text in ("It's a long text. " * 500, "zero \0 byte"):
        message = refused(text)
        assert "give a list with it: [text]" in message and len(message) < 600


def test_each_reader_names_its_own_argument(tmp_path):
    jsonl_file = write(tmp_path / "a.jsonl", jsonl({"text": "x"}) + "{broken")
    text_file = write(tmp_path / "b.txt", b"caf\xe9")
    for file, message in (jsonl_file, "line 2: "), (text_file, "offset 3$"):
        with pytest.raises(UserError, match=message) as caught:
            data.read_documents(file)
        assert caught.value.argument == "path" and ALLOWED not in str(caught.value)
        refused(file)


def test_missing_files_folders_and_misspelt_names(tmp_path):
    assert "missing.txt' is not a file." in refused(tmp_path / "missing.txt")
    assert "is a folder, not a file." in refused(tmp_path)
    assert "Did you mean 'domains'?" in refused("domain")
    assert "Did you mean 'default'?" in refused("defaults")
