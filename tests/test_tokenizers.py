"""Tokenizers: text there and back in every kind, BOS where a model wants it, and wrong files."""

import io
import json
import random
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from rope_study import checkpoints, data
from rope_study.checkpoints import runs
from rope_study.data.tokenizers import words
from rope_study.data.tokenizers.base import label
from rope_study.data.tokenizers.hugging_face import SETTINGS_FILE
from rope_study.decoder import presets
from rope_study.errors import UserError

SENTENCES = ["the cat sat on the mat", "a dog sat on the log", "rotary pairs turn at a frequency"]
DECODER = presets.small()
TEXTS = ["the cat sat", "caf\u00e9 \u6f22\u5b57 \U0001f600\n\n  x", " the", ""]


# --- small models of every kind ---------------------------------------------------------------


def train_sentencepiece(path, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return str(path)


def train_byte_level(path, special=("<|begin_of_text|>",), prepends=True):
    """As Llama 3's and Qwen's; it adds its first special token, cuts and pads if it is let."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(SENTENCES * 20, trainer)
    if special and prepends:
        first = special[0]
        model.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, model.token_to_id(first))]
        )
    model.enable_truncation(4)
    model.enable_padding(length=50)
    model.save(str(path))
    return str(path)


def train_like_gemma(path, special=("<pad>", "<eos>", "<bos>", "<unk>")):
    """Spaces as ▁, unknown characters as bytes, nothing put in front."""
    special = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    model.normalizer = normalizers.Replace(" ", "▁")
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, limit_alphabet=20, show_progress=False
    )
    model.train_from_iterator(SENTENCES * 20, trainer)
    model.save(str(path))
    return str(path)


def write_llama2c(path, pieces):
    """(score, piece) of ids from 259 on; bytes as given where a piece is not to be right."""
    first = [(0.0, "<unk>"), (0.0, "\n<s>\n"), (0.0, "\n</s>\n")]
    entries = [*first, *((0.0, f"<0x{byte:02X}>") for byte in range(256)), *pieces]
    pieces = [(score, p if isinstance(p, bytes) else p.encode()) for score, p in entries]
    content = struct.pack("<i", max(len(piece) for _, piece in pieces))
    content += b"".join(struct.pack("<fi", score, len(piece)) + piece for score, piece in pieces)
    path.write_bytes(content)
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{kind: path}, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for kind in ("sentencepiece", "bpe", "byte_level", "gemma", "llama2c"):
        (folder / kind).mkdir()
    # As Gemma's: bytes for unknown characters, and no normalization that would lose spaces.
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    paths["sentencepiece"] = train_sentencepiece(
        folder / "sentencepiece" / "small.model",
        vocab_size=320,
        byte_fallback=True,
        user_defined_symbols=["\n", "\t"],
        **plain,
    )
    # What llama2.c's exporter reads; it writes the second file from it.
    paths["bpe"] = train_sentencepiece(
        folder / "bpe" / "bpe.model",
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        **plain,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=paths["bpe"])
    ids = range(259, model.vocab_size())
    pieces = [(model.get_score(i), model.id_to_piece(i).replace("▁", " ")) for i in ids]
    paths["llama2c"] = write_llama2c(folder / "llama2c" / "tok330.bin", pieces)
    paths["byte_level"] = train_byte_level(folder / "byte_level" / "tokenizer.json")
    paths["gemma"] = train_like_gemma(folder / "gemma" / "tokenizer.json")
    return paths | {"bytes": "bytes"}


@pytest.fixture(params=["bytes", "sentencepiece", "byte_level", "gemma", "llama2c"])
def tokenizer(request, models):
    return data.load_tokenizer(models[request.param])


def refuse_tokenizer(message, function, *args):
    """The call raises a UserError with that message, which names the tokenizer to change."""
    with pytest.raises(UserError, match=message) as caught:
        function(*args)
    assert caught.value.argument == "tokenizer"


def beside(path, name, content):
    """Writes JSON next to a file."""
    path.with_name(name).write_text(json.dumps(content))


# --- every kind -------------------------------------------------------------------------------


def test_round_trip_of_any_text(tokenizer):
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1 and tokenizer.bos not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.bos]) == text
        assert len(tokenizer.pieces(ids)) == len(ids)


def test_encode_batch_pads_with_bos(tokenizer):
    texts = ["the cat", "a", ""]
    ids = [tokenizer.encode(text).tolist() for text in texts]
    tokens, weights = tokenizer.encode_batch(texts)
    assert tokens.shape == weights.shape == (3, 1 + len(ids[0]))
    assert tokens.dtype == np.int32 and weights.dtype == np.float32
    for row, weight, expected in zip(tokens, weights, ids, strict=True):
        real = 1 + len(expected)
        assert row.tolist() == [tokenizer.bos, *expected] + [tokenizer.bos] * (len(row) - real)
        assert weight.tolist() == [1] * real + [0] * (len(row) - real)
    cut_tokens, cut_weights = tokenizer.encode_batch(texts, length=3)
    np.testing.assert_array_equal(cut_tokens, tokens[:, :3])
    np.testing.assert_array_equal(cut_weights, weights[:, :3])


def test_encode_batch_refuses(tokenizer):
    for texts in ([], "one string"):
        with pytest.raises(UserError, match="must be a list with at least one text"):
            tokenizer.encode_batch(texts)
    with pytest.raises(UserError, match="length=0 must be at least 1") as caught:
        tokenizer.encode_batch(["a"], length=0)
    assert caught.value.argument == "length"


@pytest.mark.parametrize("text", ["caf\udce9", "caf\udcc3\udca9", "\ud800"])
def test_text_that_is_not_unicode_is_one_line(tokenizer, text):
    for read in (tokenizer.encode, lambda text: tokenizer.encode_batch(["a", text])):
        with pytest.raises(
            UserError, match=r"the text is not valid Unicode: '\\ud\w+' at"
        ) as caught:
            read(text)
        assert "\n" not in str(caught.value) and caught.value.argument == "text"


@pytest.mark.parametrize("text", [b"bytes", 5, None])
def test_what_is_no_text_is_one_line(tokenizer, text):
    with pytest.raises(UserError, match=r"the text, .*, is of type \w+, no string"):
        tokenizer.encode_batch(["a", text])


def test_bytes_exported_are_the_same_tokens(tmp_path):
    """As a tokenizer.json, which Transformers reads too."""
    tokenizer = data.ByteTokenizer()
    tokenizer.export(tmp_path)
    exported = data.load_tokenizer(tmp_path)
    assert (exported.bos, exported.vocab_size) == (256, 257)
    for text in [*TEXTS, bytes(range(256)).decode("latin-1")]:
        np.testing.assert_array_equal(exported.encode(text), tokenizer.encode(text))
        assert exported.decode(tokenizer.encode(text)) == text


def test_ids_outside_the_vocabulary(tokenizer):
    for ids in ([0, tokenizer.vocab_size], [-1]):
        for read in (tokenizer.decode, tokenizer.pieces):
            refuse_tokenizer(f"id {ids[-1]} is not in tokenizer", read, ids)


def test_a_run_carries_its_tokenizer(tokenizer, tmp_path):
    """What a run's folder holds is enough, wherever the original went."""
    for _ in range(2):  # a run that goes on writes again
        runs.write_model(tmp_path, DECODER, tokenizer)
    loaded = checkpoints.load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert (loaded.bos, loaded.vocab_size) == (tokenizer.bos, tokenizer.vocab_size)
    assert loaded.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(loaded.encode("the cat"), tokenizer.encode("the cat"))
    runs.write_model(tmp_path, DECODER, loaded)
    assert checkpoints.load_tokenizer(tmp_path).decode(tokenizer.encode("the cat")) == "the cat"


def test_fingerprint_is_of_the_content_and_bos(models, tmp_path):
    kinds = {kind: data.load_tokenizer(path).fingerprint for kind, path in models.items()}
    assert len(set(kinds.values())) == len(kinds), "each kind is another tokenizer"
    assert all(re.fullmatch("[0-9a-f]{16}", fingerprint) for fingerprint in kinds.values())
    assert kinds["bytes"] == "218135ceaa7e4c64"
    path = tmp_path / "tokenizer.json"
    path.write_bytes(Path(models["byte_level"]).read_bytes())
    assert data.load_tokenizer(path).fingerprint == kinds["byte_level"], "moved"
    beside(path, SETTINGS_FILE, {"add_bos_token": False})
    without_bos = data.load_tokenizer(path).fingerprint
    train_byte_level(path, SPECIAL)
    other_content = data.load_tokenizer(path).fingerprint
    assert len({kinds["byte_level"], without_bos, other_content}) == 3


# --- bytes and SentencePiece ------------------------------------------------------------------


def test_byte_ids_and_labels():
    tokenizer = data.ByteTokenizer()
    assert (tokenizer.name, tokenizer.bos, tokenizer.vocab_size) == ("bytes", 256, 257)
    np.testing.assert_array_equal(tokenizer.encode("A\u00e9"), [65, 0xC3, 0xA9])
    assert tokenizer.decode([65, 0xC3]) == "A\ufffd"
    labels = ["<bos>", "A", "\u2581", "<0x0A>", "<0xC3>"]
    assert tokenizer.pieces([256, 65, 32, 10, 0xC3]) == labels


def test_sentencepiece_is_the_model(models):
    path = models["sentencepiece"]
    tokenizer = data.load_tokenizer(path)
    model = sentencepiece.SentencePieceProcessor(model_file=path)
    assert (tokenizer.name, tokenizer.bos) == (path, model.bos_id())
    assert tokenizer.vocab_size == model.vocab_size()
    assert tokenizer.encode("the cat").tolist() == model.encode("the cat")
    pieces = tokenizer.pieces([tokenizer.bos, *tokenizer.encode("the\n\tcat")])
    assert (
        pieces[0] == "<s>" and "<0x0A>" in pieces and "<0x09>" in pieces and "\u2581" in pieces[1]
    )


# --- Hugging Face -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, pieces",
    [
        (
            "byte_level",
            ["<|begin_of_text|>", "the", "▁cat", "<0x0A>", "<0xE6>", "<0xBC>", "<0xA2>"],
        ),
        ("gemma", ["<bos>", "the", "▁cat", "<0x0A>", "<0xE6>", "<0xBC>", "<0xA2>"]),
    ],
)
def test_hugging_face_is_the_library(models, kind, pieces):
    tokenizer = data.load_tokenizer(models[kind])
    model = tokenizers.Tokenizer.from_file(models[kind])
    assert tokenizer.name == models[kind]
    assert tokenizer.vocab_size == model.get_vocab_size()
    assert tokenizer.bos == model.token_to_id(pieces[0])
    model.no_truncation()
    model.no_padding()
    for text in (*SENTENCES, *TEXTS):
        expected = model.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).tolist() == expected
    ids = [tokenizer.bos, *tokenizer.encode("the cat\n\u6f22")]
    assert "".join(tokenizer.pieces(ids)) == "".join(pieces)
    assert tokenizer.pieces(ids)[-4:] == pieces[-4:]


def test_labels_of_whole_characters_and_added_tokens(tmp_path):
    model = tokenizers.Tokenizer.from_file(train_byte_level(tmp_path / "t.json"))
    model.add_tokens(["two words", "\u6f22\u5b57"])
    model.save(str(tmp_path / "t.json"))
    tokenizer = data.load_tokenizer(tmp_path / "t.json")
    ids = tokenizer.encode("two words\u6f22\u5b57\u00e9")
    assert tokenizer.pieces(ids) == ["two▁words", "\u6f22\u5b57", "<0xC3>", "<0xA9>"]
    # Every byte but the 13 that UTF-8 never has, each as the library spells it.
    text = "".join(chr(n) for n in (*range(0x800), *range(0x800, 0x110000, 0x1000)))
    text = "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000 and c not in "▁<")
    for character in text:
        pieces = tokenizer.pieces(tokenizer.encode(character))
        expected = [f"<0x{byte:02X}>" for byte in character.encode()]
        assert pieces == (expected if ord(character) > 127 else [label(character)])


def test_ids_that_are_in_use_up_to_the_last(tmp_path):
    """Released vocabularies have holes: 4 tokens, and 9 is one of them."""
    path = train_byte_level(tmp_path / "t.json")
    file = json.loads((tmp_path / "t.json").read_text())
    unused = max(file["model"]["vocab"].values()) + 1
    added = file["added_tokens"][0] | {"id": unused + 3, "content": "<late>"}
    file["model"]["vocab"]["<late>"] = unused + 3
    file["added_tokens"].append(added)
    (tmp_path / "t.json").write_text(json.dumps(file))
    tokenizer = data.load_tokenizer(path)
    assert tokenizer.vocab_size == unused + 4
    assert tokenizer.pieces([unused, unused + 3]) == [f"<{unused}>", "<late>"]
    assert tokenizer.decode([unused, unused + 3]) == "<late>"


SPECIAL = ("<a>", "<s>", "<|endoftext|>")  # ids 0, 1, 2


LLAMA = {"model_type": "llama", "bos_token_id": 1}


@pytest.mark.parametrize(
    "prepends, settings, model, bos",
    [
        # What tokenizer_config.json asks for,
        (False, {"bos_token": "<s>", "add_bos_token": True}, LLAMA, 1),
        (False, {"bos_token": {"content": "<s>"}, "add_bos_token": True}, None, 1),
        (True, {"bos_token": "<a>", "add_bos_token": False}, LLAMA, None),
        (False, {"bos_token": "<s>", "add_bos_token": False}, LLAMA, None),  # Yi
        (True, {"bos_token": None, "add_bos_token": True}, LLAMA, 0),
        # else what the file itself puts in front,
        (True, {"bos_token": "<a>"}, LLAMA, 0),
        (True, None, LLAMA, 0),
        (True, None, None, 0),
        (False, {"bos_token": "<a>"}, LLAMA, None),  # SmolLM2
        (False, {"bos_token": None}, {"model_type": "qwen3", "bos_token_id": 2}, None),
        (False, None, LLAMA, None),
        # and a file alone, to train with: a special token of a well-known name.
        (False, None, None, 1),
    ],
)
def test_where_bos_comes_from(tmp_path, prepends, settings, model, bos):
    path = tmp_path / "tokenizer.json"
    train_byte_level(path, SPECIAL, prepends)
    if settings is not None:
        beside(path, SETTINGS_FILE, settings)
    if model is not None:
        beside(path, "config.json", model)
    tokenizer = data.load_tokenizer(path)
    assert tokenizer.bos == bos
    tokens, _ = tokenizer.encode_batch(["the", "the cat sat on"])
    start = [] if bos is None else [bos]
    assert tokens[1].tolist() == [*start, *tokenizer.encode("the cat sat on")]
    run = tmp_path / "run"
    run.mkdir()
    runs.write_model(run, DECODER, tokenizer)
    assert checkpoints.load_tokenizer(run).bos == bos


def test_a_well_known_name_must_be_special(tmp_path):
    model = tokenizers.Tokenizer.from_file(train_byte_level(tmp_path / "t.json", ()))
    model.add_tokens(["<s>"])
    model.save(str(tmp_path / "t.json"))
    assert data.load_tokenizer(tmp_path / "t.json").bos is None, "<s> is HTML there"


@pytest.mark.parametrize(
    "special_tokens, pad",
    [
        ({"pad_token": "<|endoftext|>", "eos_token": "<s>"}, 2),
        ({"eos_token": {"content": "<s>"}}, 1),
        ({"pad_token": None, "eos_token": "<none>"}, 0),
        ({}, 0),
    ],
)
def test_a_model_without_bos(tmp_path, special_tokens, pad):
    path = tmp_path / "tokenizer.json"
    train_byte_level(path, SPECIAL, prepends=False)
    beside(path, SETTINGS_FILE, {"bos_token": None} | special_tokens)
    tokenizer = data.load_tokenizer(path)
    ids = tokenizer.encode("the cat sat").tolist()
    tokens, weights = tokenizer.encode_batch(["the cat sat", ""])
    assert tokens.tolist() == [ids, [pad] * len(ids)]
    assert weights.tolist() == [[1] * len(ids), [0] * len(ids)]
    assert tokenizer.decode(ids) == "the cat sat" and "▁cat" in tokenizer.pieces(ids)
    with pytest.raises(UserError, match=r"texts=\[''\] have no tokens, and .* has no BOS"):
        tokenizer.encode_batch([""])


def test_training_without_bos_or_eos_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    train_byte_level(path, SPECIAL)
    beside(path, SETTINGS_FILE, {"add_bos_token": False})
    settings = data.DataSettings(
        path=str(tmp_path / "none, and not even looked for"),
        tokenizer=str(path),
        held_out=0.1,
        length=10,
        batch_size=2,
    )
    for start in (
        lambda: data.load_corpus(settings),
        lambda: data.tokenize(["a"], data.load_tokenizer(path)),
    ):
        refuse_tokenizer("tokenizer .* has no BOS id, and no EOS id either", start)


def test_without_bos_documents_end_with_eos(tmp_path):
    path = tmp_path / "tokenizer.json"
    train_byte_level(path, SPECIAL)
    beside(path, SETTINGS_FILE, {"add_bos_token": False, "eos_token": SPECIAL[-1]})
    tokenizer = data.load_tokenizer(path)
    ids = tokenizer.encode("the cat sat").tolist()
    stream = data.tokenize(["the cat sat", "the cat sat"], tokenizer)
    assert stream.tolist() == [*ids, tokenizer.eos, *ids, tokenizer.eos]
    # Each window begins with the token before its targets.
    rows = list(data.Windows(stream, 2, tokenizer.bos))
    assert len(rows) == (len(stream) - 1) // 2
    np.testing.assert_array_equal(
        np.concatenate([row[1:] for row in rows]), stream[1:][: 2 * len(rows)]
    )
    np.testing.assert_array_equal([row[0] for row in rows], stream[:-1:2][: len(rows)])


def test_gemma_always_has_bos(tmp_path):
    path = tmp_path / "tokenizer.json"
    train_like_gemma(path)
    for content in ({}, {"bos_token": None}, {"bos_token": None, "add_bos_token": False}):
        beside(path, SETTINGS_FILE, content)
        tokens, _ = data.load_tokenizer(path).encode_batch(["the"])
        assert tokens[0, 0] == tokenizers.Tokenizer.from_file(str(path)).token_to_id("<bos>") == 2
    train_like_gemma(path, special=("<pad>", "<eos>", "<unk>"))
    assert data.load_tokenizer(path).bos is None
    for model_type in ("gemma", "gemma3_text", "recurrent_gemma"):
        beside(path, "config.json", {"model_type": model_type})
        with pytest.raises(UserError, match=r"no BOS id: .*garbage.*5.9e9.*set bos_token"):
            data.load_tokenizer(path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            SETTINGS_FILE,
            {"bos_token": "<b>"},
            "bos_token='<b>' of .*_config.json is not in the voc",
        ),
        (SETTINGS_FILE, {"bos_token": {"a": 1}}, r"bos_token={'a': 1} of .* is not in the voc"),
        (SETTINGS_FILE, {"bos_token": 7}, r"bos_token=7 of .* is not in the voc"),
        (SETTINGS_FILE, {"add_bos_token": "no"}, "add_bos_token='no' of .* must be true or false"),
        (SETTINGS_FILE, ["bos_token"], "tokenizer_config.json is damaged"),
        ("config.json", ["model_type"], "config.json is damaged"),
    ],
)
def test_files_beside_it_that_are_wrong(tmp_path, name, content, message):
    path = tmp_path / "tokenizer.json"
    train_byte_level(path)
    beside(path, name, content)
    with pytest.raises(UserError, match=message):
        data.load_tokenizer(path)
    path.with_name(name).write_text("{")
    with pytest.raises(UserError, match=f"{name} is damaged.*mend or remove it"):
        data.load_tokenizer(path)


# --- llama2.c ---------------------------------------------------------------------------------


def random_texts(count):
    """Of the letters that the models know, and some that they do not."""
    generator = random.Random(0)
    letters = "thecat satondgl  rfquy\n\u00e9\u6f22"
    for _ in range(count):
        yield "".join(generator.choices(letters, k=generator.randrange(60)))


def test_llama2c_is_the_sentencepiece_model_it_was_made_from(models):
    tokenizer = data.load_tokenizer(models["llama2c"])
    model = sentencepiece.SentencePieceProcessor(model_file=models["bpe"])
    assert (tokenizer.bos, tokenizer.vocab_size) == (model.bos_id(), model.vocab_size())
    for text in (*SENTENCES, *TEXTS, *random_texts(500)):
        ids = model.encode(text)
        assert tokenizer.encode(text).tolist() == ids
        assert tokenizer.decode([tokenizer.bos, *ids]) == model.decode(ids) == text
    ids = [1, *tokenizer.encode("the cat\n\u6f22"), 2]
    expected = ["<s>", "▁the", "▁cat", "<0x0A>", "<0xE6>", "<0xBC>", "<0xA2>", "</s>"]
    assert tokenizer.pieces(ids) == expected


def join_by_search(pieces, scores):
    """The plain rule: each time look at all neighbours, join the best, of equal ones the first."""
    pieces = list(pieces)
    while True:
        joined = [(pieces[i] + pieces[i + 1], -i) for i in range(len(pieces) - 1)]
        candidates = [(scores[piece], order) for piece, order in joined if piece in scores]
        if not candidates:
            return pieces
        i = -max(candidates)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def test_llama2c_joins_the_best_neighbours_and_of_equal_ones_the_first(tmp_path):
    pieces = [" ", *"ab", "aa", "ab", "ba", " a", "aba", "bab", "aab", "abab", "baa", " ab"]
    generator = random.Random(1)
    for _ in range(20):
        scores = {piece: float(generator.randrange(-4, 0)) for piece in pieces}
        path = write_llama2c(tmp_path / "t.bin", [(scores[piece], piece) for piece in pieces])
        tokenizer = data.load_tokenizer(path)
        for length in range(1, 14):
            text = "".join(generator.choices("aab ", k=length))
            encoded = [pieces[i - 259] for i in tokenizer.encode(text)]
            assert encoded == join_by_search(" " + text, scores)


def test_llama2c_text_that_spells_a_special_token_stays_text(tmp_path):
    """Only pieces of text are joined into: a file's \\n<s>\\n and <0x41> are not."""
    steps = ["\n<", "\n<s", "\n<s>", "<0", "<0x", "<0x4", "<0x41"]
    pieces = [*dict.fromkeys(" \n<s>0x41"), *steps]
    tokenizer = data.load_tokenizer(write_llama2c(tmp_path / "t.bin", [(0.0, p) for p in pieces]))
    for text in ("\n<s>\n", "<0x41>"):
        ids = tokenizer.encode(text)
        assert min(ids) >= 259
        assert tokenizer.decode(ids) == text


def test_llama2c_decodes_documents_one_after_another(models):
    tokenizer = data.load_tokenizer(models["llama2c"])
    ids = [1, *tokenizer.encode("the cat"), 1, *tokenizer.encode(" a dog"), 1]
    assert tokenizer.decode(ids) == "the cat a dog"
    assert tokenizer.decode(tokenizer.encode("\u00e9")[:2]) == "\ufffd"


def test_llama2c_without_a_piece_for_the_space(tmp_path):
    tokenizer = data.load_tokenizer(write_llama2c(tmp_path / "t.bin", [(0.0, "a")]))
    assert tokenizer.encode("a b").tolist() == [35, 259, 35, 3 + ord("b")]
    assert tokenizer.decode([35, 259, 35, 3 + ord("b")]) == "a b"


def test_llama2c_files_that_are_none(models, tmp_path):
    whole = Path(models["llama2c"]).read_bytes()
    path = tmp_path / "t.bin"
    for content in (b"", whole[:2], whole[:7], whole[:-1], whole[:1000], b"\0" * 100, b"text" * 99):
        path.write_bytes(content)
        message = "t.bin' is cut off or no tokenizer.bin"
        refuse_tokenizer(message, data.load_tokenizer, path)
    path.write_bytes(whole.replace(b"<0x41>", b"<0x40>"))
    with pytest.raises(UserError, match=r"id 68 must be <0x41>, found \['<0x40>'\]"):
        data.load_tokenizer(path)
    path.write_bytes(struct.pack("<i", 6) + whole[4:])
    with pytest.raises(UserError, match="length 7"):
        data.load_tokenizer(path)
    for pieces, message in [
        ([(float("nan"), "a")], "score nan"),
        ([(0.0, b"")], "length 0"),
        ([(0.0, b"\xff")], "utf-8"),
    ]:
        write_llama2c(path, pieces)
        with pytest.raises(UserError, match=rf"no tokenizer.bin of llama2.c \(.*{message}"):
            data.load_tokenizer(path)


# --- by name ----------------------------------------------------------------------------------


def test_a_folder_is_searched_in_order(models, tmp_path):
    files = {
        "tokenizer.json": ("gemma", data.HuggingFaceTokenizer),
        "tokenizer.model": ("sentencepiece", data.SentencePieceTokenizer),
        "tok330.bin": ("llama2c", data.Llama2cTokenizer),
    }
    for name, (kind, _) in files.items():
        (tmp_path / name).write_bytes(Path(models[kind]).read_bytes())
    for name, (_, expected) in files.items():
        for spec in (tmp_path, str(tmp_path)):
            tokenizer = data.load_tokenizer(spec)
            assert type(tokenizer) is expected
            assert tokenizer.name == str(tmp_path / name), "a string, as results are written with"
        (tmp_path / name).unlink()
    looked_for = r"holds none of tokenizer.model, tokenizer.json, tok\*.bin"
    message = f"tokenizer folder '{tmp_path}' {looked_for}"
    refuse_tokenizer(message, data.load_tokenizer, tmp_path)
    for name in ("tok1.bin", "tok2.bin"):
        (tmp_path / name).write_bytes(b"")
    refuse_tokenizer("holds tok1.bin, tok2.bin: name one", data.load_tokenizer, tmp_path)


@pytest.mark.parametrize("added, expected", [(0, 0), (2, 2), (-30, 0)])
def test_of_two_files_the_one_with_more_tokens_is_read(models, tmp_path, added, expected):
    """Chat tokens are often in tokenizer.json only; it is read too where it has as many."""
    model = Path(models["sentencepiece"])
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    pieces = data.load_tokenizer(str(model)).vocab_size
    tokenizer = tokenizers.Tokenizer.from_file(models["gemma"])
    tokenizer.add_special_tokens([f"<extra_{i}>" for i in range(400)])
    size = pieces + added
    file = json.loads(tokenizer.to_str())
    file["model"]["vocab"] = {k: i for k, i in file["model"]["vocab"].items() if i < size}
    file["model"]["merges"] = []
    file["added_tokens"] = [token for token in file["added_tokens"] if token["id"] < size]
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    loaded = data.load_tokenizer(tmp_path)
    assert loaded.vocab_size == pieces + expected
    assert isinstance(loaded, data.HuggingFaceTokenizer) == (added >= 0)
    (tmp_path / "tokenizer.model").write_text("another format of that name")
    assert isinstance(data.load_tokenizer(tmp_path), data.HuggingFaceTokenizer)


def test_a_sentencepiece_model_that_was_trained_without_bos(models, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(Path(models["sentencepiece"]).read_bytes())
    beside(path, SETTINGS_FILE, {"add_bos_token": False, "bos_token": "<s>"})
    tokenizer = data.load_tokenizer(tmp_path)
    assert tokenizer.bos is None
    assert (
        tokenizer.encode_batch(["the cat"])[0][0].tolist() == tokenizer.encode("the cat").tolist()
    )
    (tmp_path / "run").mkdir()
    runs.write_model(tmp_path / "run", DECODER, tokenizer)
    assert checkpoints.load_tokenizer(tmp_path / "run").bos is None


def test_another_tokenizer_beside_a_checkpoint(models, tmp_path):
    """By name where none is found, or another is wanted; a .bin model's own before others."""
    (tmp_path / "model.bin").write_bytes(b"")
    (tmp_path / "tokenizer.model").write_bytes(Path(models["sentencepiece"]).read_bytes())
    (tmp_path / "tok330.bin").write_bytes(Path(models["llama2c"]).read_bytes())
    load = lambda *args: type(checkpoints.load_tokenizer(tmp_path / "model.bin", *args))  # noqa: E731
    assert load() is data.Llama2cTokenizer
    assert load("bytes") is data.ByteTokenizer
    assert load(models["byte_level"]) is data.HuggingFaceTokenizer


def test_home_is_found_and_carried_along(models, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(Path(models["sentencepiece"]).read_bytes())
    (tmp_path / "run").mkdir()
    for spec in ("~/tokenizer.model", "~"):
        runs.write_model(tmp_path / "run", DECODER, data.load_tokenizer(spec))
        assert checkpoints.load_tokenizer(tmp_path / "run").decode([]) == ""


def test_tokenizers_that_cannot_be_loaded(tmp_path):
    for name, content in [
        ("corrupt.model", "no model"),
        ("empty.model", ""),
        ("corrupt.json", "no json"),
        ("other.json", '{"vocab": {"a": 0}}'),
    ]:
        (tmp_path / name).write_text(content)
    for spec, message in [
        ("byte", "unknown tokenizer 'byte'. Did you mean 'bytes'\\? Allowed: \"bytes\""),
        (None, "None is no path"),
        ("", "'' is no path"),
        (str(tmp_path / "none.model"), "none.model' is not a file"),
        (str(tmp_path / "none.json"), "none.json' is not a file"),
        (str(tmp_path / "none.bin"), "none.bin' is not a file"),
        (str(tmp_path / "corrupt.model"), "corrupt.model' is not a SentencePiece model"),
        (str(tmp_path / "empty.model"), "empty.model' is not a SentencePiece model"),
        (str(tmp_path / "corrupt.json"), "corrupt.json' is not a tokenizer.json of Hugging Face"),
        (str(tmp_path / "other.json"), "other.json' is not a tokenizer.json of Hugging Face"),
    ]:
        refuse_tokenizer(message, data.load_tokenizer, spec)


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "llama2c", "byte_level", "gemma"])
def test_any_damaged_file_is_one_clear_error(kind, models, tmp_path):
    """Bytes changed anywhere; what still is a tokenizer works."""
    whole, draw = Path(models[kind]).read_bytes(), random.Random(0)
    path, errors = tmp_path / Path(models[kind]).name, 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 3, 20))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            tokenizer = data.load_tokenizer(path)
            tokens, _ = tokenizer.encode_batch(["the cat é", "mats"])
            tokenizer.decode(tokens[0])
            tokenizer.pieces(tokens[0])
        except UserError as error:
            assert path.name in str(error) and "\n" not in str(error)
            errors += 1
    assert errors > 10


def test_pieces_that_are_not_utf8_are_no_sentencepiece_model(models, tmp_path):
    path = tmp_path / "t.model"
    content = Path(models["bpe"]).read_bytes()
    path.write_bytes(content.replace("▁t".encode(), b"\xff\xff\xfft", 1))
    refuse_tokenizer("t.model' is not a SentencePiece model", data.load_tokenizer, path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab": {"a": 0, "b": 2**31}, "merges": []}, "id 2147483648 is more than int32 holds"),
        ({"continuing_subword_prefix": "deep"}, "range end index"),  # the library panics
    ],
)
def test_what_the_library_trips_over_is_one_line(change, message, tmp_path):
    vocabulary = {"a": 0, "b": 1, "ab": 2}
    model = {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]} | change
    beside(tmp_path / "x", "tokenizer.json", {"version": "1.0", "added_tokens": [], "model": model})
    refuse_tokenizer(
        rf"tokenizer.json' is not a tokenizer.json of Hugging Face \({message}",
        data.load_tokenizer,
        tmp_path / "tokenizer.json",
    )


# --- by the word ------------------------------------------------------------------------------

TRAINED = {
    "as by default": {},
    "llama": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False,
              "byte_fallback": True, "allow_whitespace_only_pieces": True},
    "gemma": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False,
              "byte_fallback": True, "allow_whitespace_only_pieces": True,
              "add_dummy_prefix": False, "user_defined_symbols": ["\n", "\u2581\u2581", "<x>"]},
    "spaces at the end": {"treat_whitespace_as_suffix": True},
    "pieces of several words": {"split_by_whitespace": False},
    "unigram": {"model_type": "unigram"},
}  # fmt: skip


@pytest.mark.parametrize("kind", TRAINED)
def test_sentencepiece_by_the_word_gives_the_same_ids(kind, monkeypatch):
    """The fast way and the library's on texts of all kinds of spaces; or it is not taken."""
    monkeypatch.setattr(words, "KEPT", 50)
    model, sample = io.BytesIO(), list(data.PASSAGES) + ["a  b   c\n\nd"] * 9
    sentencepiece.SentencePieceTrainer.train(
        **{"model_type": "bpe", **TRAINED[kind]}, sentence_iterator=iter(sample),
        model_writer=model, vocab_size=500, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert words.Words.apply_to(processor) == (kind in ("as by default", "llama", "gemma"))
    if words.Words.apply_to(processor):
        by_word, draw = words.Words(processor), random.Random(0)
        letters = " \n\t\u00a0\u2581ab.,1\u00e9\uff21\u6f22\u0301\u2603\u200b\u3000<x>"
        for text in [*sample, *("".join(draw.choices(letters, k=20)) for _ in range(300))]:
            assert by_word.encode(text) == processor.encode(text), repr(text)
