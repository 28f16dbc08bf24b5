"""Tensor files: parts as NumPy's own indexing gives them, errors by name, and peak memory."""

import json
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from rope_study.checkpoints.hugging_face import tensor_files
from rope_study.checkpoints.hugging_face.tensor_files import TensorFiles
from rope_study.errors import UserError


def tensor(shape, dtype=np.float32):
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


TENSORS = {
    "rows": tensor((7, 5)),
    "deep": tensor((3, 4, 6), ml_dtypes.bfloat16),
    "first": tensor((1, 9, 4), np.int64),
    "vector": tensor((11,), np.float16),
    "scalar": np.array(3.5, np.float64),
    "empty": tensor((0, 3)),
    "flags": np.array([True, False, True]),
}


def write(folder, shards, index=None):
    """A folder of {file name: {tensor name: array}} and an index, of all that or as given."""
    folder.mkdir(exist_ok=True)
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    if index is None:
        index = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / tensor_files.INDEX_FILE).write_text(json.dumps({"weight_map": index}))
    return folder


def refused(path, message):
    with pytest.raises(UserError, match=message):
        TensorFiles(path)


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return write(
        tmp_path / "sharded",
        {
            "a.safetensors": {name: TENSORS[name] for name in ("rows", "deep")},
            "b.safetensors": {name: TENSORS[name] for name in ("vector", "scalar")},
        },
    )


# --- reading ----------------------------------------------------------------------------------


def test_every_tensor_is_what_was_saved(file):
    files = TensorFiles(file)
    assert files.names == sorted(TENSORS)
    for name, expected in TENSORS.items():
        assert files.shape(name) == expected.shape
        assert files.dtype(name) == expected.dtype
        read = files.read(name)
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)
        read.fill(0)
        np.testing.assert_array_equal(files.read(name), expected)


@pytest.mark.parametrize(
    "name, index",
    [
        ("rows", (slice(2, 5),)),
        ("rows", (slice(0, 7), slice(1, 3))),
        ("rows", (slice(6, 7), slice(4, 5))),
        ("deep", (slice(1, 2), slice(1, 4), slice(2, 3))),
        ("deep", (slice(0, 3), slice(2, 4), slice(0, 6))),
        ("first", (slice(0, 1), slice(3, 8))),
        ("vector", (slice(4, 9),)),
        ("scalar", ()),
        ("empty", ()),
    ],
)
def test_a_part_is_what_numpy_selects(file, name, index):
    part = TensorFiles(file).read(name, index)
    expected = TENSORS[name][index]
    assert part.shape == expected.shape and part.dtype == expected.dtype
    np.testing.assert_array_equal(part, expected)


def test_a_name_that_is_not_there(file):
    files = TensorFiles(file)
    for ask in (files.shape, files.dtype, files.read):
        with pytest.raises(UserError, match=r"no tensor 'row' among the 7 in .* mean 'rows'\?"):
            ask("row")


def test_a_type_that_is_not_read(tmp_path):
    save_file({"a": np.ones(4, ml_dtypes.float8_e4m3fn)}, tmp_path / "x.safetensors")
    files = TensorFiles(tmp_path)
    assert files.shape("a") == (4,)
    for ask in (files.dtype, files.read):
        with pytest.raises(UserError, match=r"'a' in .*x.safetensors is of type F8_E4M3.*BF16"):
            ask("a")


def test_no_file_stays_open(file, monkeypatch):
    files = TensorFiles(file)
    save_file({"rows": TENSORS["rows"] + 1}, file.with_name("other"))
    file.with_name("other").replace(file)
    np.testing.assert_array_equal(files.read("rows"), TENSORS["rows"] + 1)
    with pytest.raises(UserError, match=r"'deep' can no longer be read from .*model.safetensors"):
        files.read("deep")


# --- folders ----------------------------------------------------------------------------------


def test_a_folder_is_searched_in_order(file, folder):
    lone = file.rename(file.with_name("lone.safetensors"))
    assert TensorFiles(lone.parent).names == sorted(TENSORS)
    assert TensorFiles(str(folder)).names == ["deep", "rows", "scalar", "vector"]
    lone.rename(folder / "consolidated.safetensors")
    assert len(TensorFiles(folder).names) == 4, "the index says what belongs together"
    (folder / "consolidated.safetensors").rename(folder / "model.safetensors")
    assert len(TensorFiles(folder).names) == len(TENSORS)


def test_shards_are_read_where_the_index_says(folder):
    files = TensorFiles(folder)
    for name in files.names:
        assert files.shape(name) == TENSORS[name].shape
        np.testing.assert_array_equal(files.read(name), TENSORS[name])


def test_links_of_a_cache_lead_out_of_the_folder(folder, tmp_path):
    """Hugging Face's cache holds snapshots/<commit>/<file> -> ../../blobs/<hash>."""
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "0123", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    np.testing.assert_array_equal(TensorFiles(snapshot).read("rows"), TENSORS["rows"])
    (blobs / "0").unlink()
    refused(snapshot, r"a.safetensors is missing or a broken link")


# --- errors -----------------------------------------------------------------------------------


def test_nothing_to_read(tmp_path):
    refused(tmp_path / "none", "none does not exist: give a folder of .safetensors files")
    refused(tmp_path, r"holds no .safetensors file; give a folder with model.safetensors, or")
    (tmp_path / "notes.txt").write_text("text")
    refused(tmp_path / "notes.txt", "notes.txt is not a .safetensors file; give one")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "b.pth", "c.ckpt"])
def test_pickle_is_refused_and_never_loaded(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({}))
    message = rf"no.* .safetensors file but {name}, and pickle.*can run any code.*convert"
    refused(tmp_path, message)
    refused(tmp_path / name, message.replace("no.*", "not a"))


def test_several_files_without_an_index(folder):
    (folder / tensor_files.INDEX_FILE).unlink()
    refused(folder, r"holds a.safetensors, b.safetensors and no model.safetensors.index.json")
    (folder / "a.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "b.safetensors").unlink()
    refused(folder, r"holds model-00001-of-00002.safetensors and no model.safetensors.index.json")
    (folder / "model-00001-of-00002.safetensors").rename(folder / "m-00001-of-00001.safetensors")
    assert TensorFiles(folder).names == ["deep", "rows"]


def test_a_file_that_is_cut_off_or_corrupt(file):
    whole = file.read_bytes()
    too_long = (2**40).to_bytes(8, "little") + whole[8:]
    broken_json = whole[:8] + b"x" + whole[9:]
    for content in (whole[:-1], whole[:100], whole[:3], b"", whole + b"0", too_long, broken_json):
        file.write_bytes(content)
        refused(file, rf"model.safetensors of {len(content):,} bytes is cut off, corrupt or no ")


def test_any_damaged_header_is_one_clear_error(file):
    """Each byte of the header in turn; a name or a type may also change into another."""
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    errors = 0
    for place in range(header):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
        try:
            files = TensorFiles(file)
            for name in files.names:
                files.read(name)
        except UserError as error:
            assert "model.safetensors" in str(error)
            errors += 1
    assert errors > header / 2


def test_a_file_cut_off_after_it_was_opened(file):
    files = TensorFiles(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model.safetensors of .* is cut off"):
        files.read("rows")
    file.unlink()
    with pytest.raises(UserError, match=r"model.safetensors is cut off.*No such file"):
        files.read("rows")


def test_a_shard_that_is_missing(folder):
    (folder / "b.safetensors").unlink()
    refused(folder, r"b.safetensors is missing.*index.json lists it, for tensor '(vector|scalar)'")


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "[" * 100_000]
)
def test_an_index_that_is_none(folder, text):
    (folder / tensor_files.INDEX_FILE).write_text(text)
    refused(folder, r'model.safetensors.index.json is not an index, {"weight_map"')


def test_an_index_of_nothing(folder):
    refused(write(folder, {}, {}), r"index.json lists no tensors")


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/inside.safetensors",
        "..\\outside.safetensors",
        "..",
        "",
        "a.bin",
        "a.safetensors\n",
        7,
        None,
    ],
)
def test_an_index_must_not_choose_paths(folder, shard):
    # What the paths lead to is there, so that only the refusal keeps it from being read.
    save_file({"rows": TENSORS["rows"]}, folder.parent / "outside.safetensors")
    (folder / "sub").mkdir()
    save_file({"rows": TENSORS["rows"]}, folder / "sub" / "inside.safetensors")
    write(folder, {}, {"rows": shard})
    refused(folder, r"index.json places tensor 'rows' in .*without any path")


def test_an_index_that_does_not_agree_with_its_shards(folder):
    files = {"rows": "a.safetensors", "deep": "a.safetensors"}
    files |= {"vector": "b.safetensors", "scalar": "b.safetensors"}
    for index, message in [
        (files | {"more": "b.safetensors"}, "'more' should be in b.safetensors, which .* have it:"),
        (files | {"rows": "b.safetensors"}, "'rows' should be in b.safe.* but a.safetensors does"),
        ({**files, "vector": "a.safetensors"}, "'vector' should be in a.s.* b.safetensors does"),
        ({name: files[name] for name in files if name != "deep"}, "'deep' is in a.safe.* and not"),
    ]:
        refused(write(folder, {}, index), rf"tensor {message}.*not of one save")
    save_file({"rows": TENSORS["rows"], "vector": TENSORS["vector"]}, folder / "b.safetensors")
    refused(
        write(folder, {}, files), r"'rows' is in two shards, a.safetensors and b.safetensors.*save"
    )


# --- memory -----------------------------------------------------------------------------------

# Peak resident memory of a process of its own, in MB, above what it had before each reading of all
# tensors. Writing 5 resets the peak.
MEASURE = """
import json, sys
from rope_study.checkpoints.hugging_face.tensor_files import TensorFiles

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

def added(*indices):
    open("/proc/self/clear_refs", "w").write("5")
    before, files = peak(), TensorFiles(sys.argv[1])
    for index in indices:
        for name in files.names:
            files.read(name, index)
    return peak() - before

rows = [(slice(100, 400),), (slice(4000, 4300),)]
print(json.dumps({"open": added(), "whole": added(()), "rows": added(*rows)}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_one_part_and_the_pages_it_was_read_from(tmp_path):
    """8 tensors of 25 MB each, of rows like a weight's, 5 KB."""
    file = tmp_path / "model.safetensors"
    save_file({str(i): np.full((5000, 2500), i, ml_dtypes.bfloat16) for i in range(8)}, file)
    command = [sys.executable, "-c", MEASURE, str(file)]
    measurement = subprocess.run(command, capture_output=True, text=True, check=True)
    file.unlink()
    added = json.loads(measurement.stdout)
    assert added["open"] < 2
    assert added["whole"] < 2 * 25 + 8
    assert added["rows"] < 2 * 1.5 + 8
