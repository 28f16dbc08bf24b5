"""Every public function with one wrong argument after the other: an answer, or one UserError."""

import dataclasses
import inspect
import os
import types
from pathlib import Path

import jax
import numpy as np
import public_calls
import pytest
import xarray
from hostile import hostile

import rope_study
from rope_study import (
    checkpoints,
    data,
    decoder,
    figures,
    interventions,
    probes,
    rotary,
    sharding,
    theory,
    training,
)
from rope_study.errors import UserError

FOLDERS = checkpoints, data, decoder, figures, interventions, probes, rotary, sharding, theory
FOLDERS += (training,)
# Public, and not in the table.
EXCEPTIONS = {
    "abstract": "data.Tokenizer rotary.Encoding",
    "read as data.HuggingFaceTokenizer, from a file": "data.GGUFTokenizer data.Llama2cTokenizer"
    " data.SentencePieceTokenizer",
    "whose methods are in the table": "data.ByteTokenizer interventions.Band",
    "made by other functions": "data.Corpus data.Text interventions.Intervention sharding.Layout"
    " sharding.one_device rotary.Description",
    "the checks themselves": "decoder.check_bos decoder.check_ids decoder.check_length"
    " decoder.check_params decoder.check_text decoder.check_tokens decoder.check_vocabulary"
    " decoder.each_batch decoder.each_pair rotary.check_named rotary.check_traced",
    "of a DecoderConfig, which is checked": "decoder.Decoder decoder.LayerSpec decoder.fit_layout"
    " decoder.layout_of decoder.parameter_count decoder.parameter_tree",
    "mathematics inside encodings and layers": "rotary.geometric rotary.name_of rotary.pair_scale"
    " rotary.pairs rotary.phases rotary.rotate rotary.turn rotary.turned_pairs rotary.unpairs",
    "asks a package index, and reads what tests/test_store.py makes": "checkpoints.fetch"
    " data.Store data.open_store",
    "of processes": "sharding.all_agree sharding.check_same sharding.is_main_process"
    " sharding.largest sharding.on_main sharding.start sharding.to_host sharding.wait_for_all",
}


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calls")
    model = public_calls.make_model()
    public_calls.write_files(model, folder)
    return folder, public_calls.calls(model, folder)


def room(module) -> str:
    """As "decoder.sampling" of rope_study.decoder.sampling."""
    return module.removeprefix("rope_study.")


def public_functions() -> set[str]:
    """As "probes.run", of every folder and of the package itself; each thing under one name."""
    names = {}
    for folder in FOLDERS:
        for name in getattr(folder, "__all__", vars(folder)):
            thing = getattr(folder, name)
            if not name.startswith("_") and (inspect.isroutine(thing) or inspect.isclass(thing)):
                names.setdefault(thing, f"{room(folder.__name__)}.{thing.__name__}")
    for thing in (getattr(rope_study, name) for name in rope_study.__all__):
        if not isinstance(thing, types.ModuleType):
            names.setdefault(thing, f"{room(thing.__module__)}.{thing.__name__}")
    return set(names.values())


def test_every_public_function_is_swept(calls):
    """Or said to be an exception: a new one belongs into tests/public_calls.py."""
    exceptions = set(" ".join(EXCEPTIONS.values()).split())
    assert public_functions() - set(calls[1]) == exceptions


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", [room(folder.__name__) for folder in FOLDERS])
def test_wrong_arguments(calls, folder):
    """No other exception, no NaN where there was none, and no file changed by what is refused."""
    place, table = calls
    faults = []
    for name, (function, arguments) in table.items():
        if not name.startswith(f"{folder}."):
            continue
        usual = has_nan(function(**arguments))
        for argument, good in arguments.items():
            for bad in hostile(good):
                wrong = outcome(function, arguments | {argument: bad}, usual or has_nan(bad), place)
                faults += [f"{name} {argument}={bad!r:.200}: {wrong}"] if wrong else []
    assert not faults, "\n".join(faults)


def outcome(function, arguments, may_be_nan, place) -> str | None:
    """What is wrong with what becomes of a call, where something is."""
    before = files(place) if any(isinstance(value, Path) for value in arguments.values()) else {}
    try:
        result = function(**arguments)
    except UserError:
        return "changed a file" if before and files(place) != before else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "NaN" if has_nan(result) and not may_be_nan else None


def files(folder):
    """Every file with when it was changed."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return {path: path.stat().st_mtime_ns for path in found}


def has_nan(value) -> bool:
    """Whether there is NaN in a result, however deep."""
    match value:
        case float() | np.ndarray() | np.generic() | jax.Array():
            array = np.asarray(value)
            return array.dtype.kind == "f" and bool(np.isnan(array).any())
        case xarray.Dataset():
            return any(map(has_nan, value.variables.values()))
        case xarray.DataArray() | xarray.Variable():
            return has_nan(value.values)
        case dict():
            return any(map(has_nan, value.values()))
        case list() | tuple():
            return any(map(has_nan, value))
    if dataclasses.is_dataclass(value):
        return any(has_nan(getattr(value, f.name)) for f in dataclasses.fields(value))
    return False
