"""The embedded texts, and texts of the user's own."""

import ast
import json
import re

import pytest

from rope_study.data.texts import DOMAINS, PASSAGES, load_texts
from rope_study.errors import UserError


def test_passages_are_ten_of_30_to_80_words_with_what_heads_look_for():
    assert len(set(PASSAGES)) == 10
    for text in PASSAGES:
        assert 30 <= len(text.split()) <= 80, text
        assert "  " not in text and text.strip() == text
    joined = "\n".join(PASSAGES)
    assert len(re.findall(r"\w'\w", joined)) > 20, "apostrophes"
    assert joined.count('"') > 10 and len(re.findall(r"\d", joined)) > 30
    for name in ("Captain Orlo", "Noor", "red ball"):
        assert joined.count(name) > 1


def test_domains_are_what_they_say():
    assert list(DOMAINS) == ["prose", "italian", "chinese", "german", "code", "arithmetic"]
    for label, some in DOMAINS.items():
        assert len(set(some)) == 3, label
    for text in DOMAINS["code"]:
        ast.parse(text)
    for text in DOMAINS["chinese"]:
        assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 0.8 * len(text)
    sums = [
        s
        for text in DOMAINS["arithmetic"]
        for s in re.findall(r"([\d(][\d+*/() -]+) = (\d+)", text)
    ]
    assert len(sums) > 15
    for left, right in sums:
        assert eval(left) == int(right), left


def test_arithmetic_with_letters_is_right():
    for x, y, rest in re.findall(r"x = (\d+), y = (\d+): ([^.]+)\.", DOMAINS["arithmetic"][2]):
        for left, right in re.findall(r"([^,=]*[xy][^,=]*) = (\d+)", rest):
            assert eval(left, {"x": int(x), "y": int(y)}) == int(right), (x, y, left)


def test_default_and_domains():
    assert load_texts() == load_texts("default")
    assert load_texts().texts == PASSAGES and set(load_texts().labels) == {""}
    found = load_texts("domains")
    assert found.by_label() == {label: list(some) for label, some in DOMAINS.items()}
    assert len(found.texts) == len(found.labels) == 18 and found.name == "domains"


def test_lists_and_files(tmp_path):
    assert load_texts(["one", "two"]).texts == ("one", "two")
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffOne\r\nline.\r\n\r\n \r\nZwei ü.\n\n\n".encode())
    got = load_texts(file)
    assert (got.name, got.texts, got.labels) == ("mine.txt", ("One\nline.", "Zwei ü."), ("", ""))
    assert load_texts(str(file)) == got


def test_jsonl_with_and_without_labels(tmp_path):
    file = tmp_path / "mine.jsonl"
    lines = [{"text": "a\u2028b", "label": "x"}, {"text": "c"}, {"text": "d", "label": "x"}]
    file.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    got = load_texts(file)
    assert got.texts == ("a\u2028b", "c", "d") and got.labels == ("x", "", "x")
    assert got.by_label() == {"x": ["a\u2028b", "d"], "": ["c"]}


@pytest.mark.parametrize(
    "spec, message",
    [
        ("defualt", r"'defualt' is not a file\. Did you mean 'default'\? Allowed: \"default\""),
        ([], r"there is none that is not empty"),
        (["  ", "\n"], r"there is none that is not empty"),
        (["a", 3], r"texts=\['a', 3\] are no texts"),
        (7, r"texts=7 are no texts"),
    ],
)
def test_wrong_specs_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        load_texts(spec)


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"text": "a"}\n{"txt": "b"}', r"line 2: not of the form .*KeyError"),
        (b'{"text": 3}', r"line 1: not of the form"),
        (b'{"text": "a", "label": 3}', r"line 1: not of the form"),
        (b'["a"]', r"line 1: not of the form"),
        (b'{"text": "\\ud800"}', r"line 1: not of the form"),
        (b"\xff\xfe", r"cannot be read as UTF-8 text"),
        (b"\n\n", r"there is none that is not empty"),
    ],
)
def test_wrong_files_are_refused(content, message, tmp_path):
    file = tmp_path / "wrong.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_texts(file)
