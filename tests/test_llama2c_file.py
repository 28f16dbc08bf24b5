"""llama2.c's model.bin: every number in its place, and files that are something else."""

import dataclasses
import struct

import numpy as np
import pytest

from rope_study.checkpoints.llama2c.file import read
from rope_study.errors import UserError

# All sizes differ, so that no two axes can be exchanged: D=24, N=6, H=4, K=2.
FIELDS = {
    "dim": 24,
    "hidden_dim": 10,
    "n_layers": 3,
    "n_heads": 6,
    "n_kv_heads": 2,
    "vocab_size": 7,
    "seq_len": 5,
}
SHAPES = {
    "token_embedding": (7, 24),
    "rms_att": (3, 24),
    "wq": (3, 24, 24),
    "wk": (3, 8, 24),
    "wv": (3, 8, 24),
    "wo": (3, 24, 24),
    "rms_ffn": (3, 24),
    "w1": (3, 10, 24),
    "w2": (3, 24, 10),
    "w3": (3, 10, 24),
    "rms_final": (24,),
    "cos": (5, 2),
    "sin": (5, 2),
    "wcls": (7, 24),
}


def write(path, arrays, **changed):
    """A file of {name: array} in order; a negative vocab_size means that wcls is one of them."""
    content = struct.pack("<7i", *(FIELDS | changed).values())
    path.write_bytes(content + b"".join(array.tobytes() for array in arrays.values()))
    return path


def make_arrays(shared):
    generator = np.random.default_rng(0)
    names = [name for name in SHAPES if not (shared and name == "wcls")]
    return {name: generator.normal(size=SHAPES[name]).astype(np.float32) for name in names}


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "model.bin", make_arrays(shared=True))


@pytest.mark.parametrize("shared", [True, False])
def test_every_array_is_in_its_place(tmp_path, shared):
    arrays = make_arrays(shared)
    path = write(tmp_path / "model.bin", arrays, vocab_size=7 if shared else -7)
    header, stored = read(str(path))
    assert dataclasses.asdict(header) == FIELDS | {"shared_classifier": shared}
    assert (header.head_dim, header.kv_dim) == (4, 8)
    assert list(stored) == [name for name in arrays if name not in ("cos", "sin")]
    for name, array in stored.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
        assert isinstance(array, np.memmap) and not array.flags.writeable


def test_a_size_that_is_not_the_headers(file):
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:-4], whole + b"\0", whole[:28]):
        file.write_bytes(content)
        message = rf"model.bin holds {len(content):,} bytes and its header asks for {len(whole):,}"
        with pytest.raises(UserError, match=message):
            read(file)


def test_wcls_must_be_there_exactly_if_the_header_says_so(tmp_path):
    for shared, vocab_size in ((True, -7), (False, 7)):
        path = write(tmp_path / "model.bin", make_arrays(shared), vocab_size=vocab_size)
        with pytest.raises(UserError, match="its header asks for"):
            read(path)


def test_what_is_no_file_or_has_no_header(tmp_path):
    with pytest.raises(UserError, match=r"none.bin is not a file: give the path of a model.bin"):
        read(tmp_path / "none.bin")
    with pytest.raises(UserError, match="is not a file"):
        read(tmp_path)
    (tmp_path / "short.bin").write_bytes(b"\1" * 27)
    with pytest.raises(UserError, match=r"short.bin holds 27 bytes, the header .* has 28"):
        read(tmp_path / "short.bin")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"dim": 0}, r"dim=0 is not 1\.\."),
        ({"hidden_dim": -10}, r"hidden_dim=-10 is not 1\.\."),
        ({"n_layers": 2**30}, r"n_layers=1073741824 is not 1\.\."),
        ({"n_heads": 0}, "n_heads=0 is not"),
        ({"n_kv_heads": -2}, "n_kv_heads=-2 is not"),
        ({"vocab_size": 0}, "vocab_size=0 is not"),
        ({"vocab_size": -(2**31)}, "vocab_size=2147483648 is not"),
        ({"seq_len": 0}, "seq_len=0 is not"),
        ({"dim": 25}, "dim=25 is not a multiple of n_heads=6"),
        ({"dim": 18}, "dim / n_heads = 3 is odd"),
        ({"n_kv_heads": 4}, "n_heads=6 is not a multiple of n_kv_heads=4"),
    ],
)
def test_headers_that_no_model_has(tmp_path, changed, message):
    path = write(tmp_path / "model.bin", {}, **changed)
    with pytest.raises(UserError, match=rf"model.bin is no model.bin of llama2.c: {message}"):
        read(path)


def test_later_versions_are_named(tmp_path):
    path = write(tmp_path / "model.bin", {}, dim=0x616B3432, hidden_dim=2)
    with pytest.raises(UserError, match=r"is of version 2 of llama2.c's format, only version 0"):
        read(path)
