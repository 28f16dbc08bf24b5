"""Parts of arrays: equal to the whole, and no more is read than holds them."""

import dataclasses
import math

import numpy as np
import pytest

from rope_study import rotary, sharding
from rope_study.checkpoints import runs
from rope_study.checkpoints.assemble import assemble
from rope_study.checkpoints.hugging_face.folder import spec_tables
from rope_study.checkpoints.weight_map import TensorSpec, make_weight_map, parameter_at
from rope_study.decoder import Decoder, presets


class CountingReader:
    """Arrays in memory that count how often each of their numbers is read."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.names = sorted(arrays)
        self.counts = {name: np.zeros(array.shape, int) for name, array in arrays.items()}
        self.sizes = {name: [] for name in arrays}

    def shape(self, name):
        """As stored."""
        return self.arrays[name].shape

    def dtype(self, name):
        """As stored."""
        return self.arrays[name].dtype

    def read(self, name, index=()):
        """array[index], counted."""
        self.counts[name][index] += 1
        self.sizes[name].append(self.counts[name][index].size)
        return self.arrays[name][index]

    def where(self, name):
        """For errors."""
        return "memory"


SIZES = {"d": 8, "n": 4, "h": 6, "f": 10}
# Each with the axes that are read whole, however small the part is: those that run together with
# one before them, and dimensions of a head whose pairs change places.
SPECS = {
    "as it is": (TensorSpec("x", "df", ("d", "f")), ""),
    "transposed": (TensorSpec("x", "df", ("f", "d")), ""),
    "fused": (TensorSpec("x", "dnh", ("nh", "d")), "h"),
    "fused, last": (TensorSpec("x", "nhd", ("d", "nh")), "h"),
    "permuted": (TensorSpec("x", "dnh", ("n", "d", "h")), ""),
    "one of three": (TensorSpec("x", "dnh", ("n", "d", "h"), part=(1,)), ""),
    "interleaved": (TensorSpec("x", "dnh", ("nh", "d"), layout="interleaved"), "h"),
    "interleaved, apart": (TensorSpec("x", "dnh", ("n", "h", "d"), layout="interleaved"), "h"),
}


@pytest.mark.parametrize("case", SPECS)
def test_every_part_is_what_the_whole_array_has_there(case):
    spec, read_whole = SPECS[case]
    shape = [SIZES[axis] for axis in spec.axes]
    stored = np.random.default_rng(0).normal(
        size=(*[3] * len(spec.part), *spec.stored_shape(shape))
    )
    reader = CountingReader({"x": stored})
    # Stated by einsum: take the part, split what runs together, order the axes, convert pairs.
    stored_axes = "".join(spec.stored_axes)
    split = stored[spec.part].reshape([SIZES[axis] for axis in stored_axes])
    ours = np.einsum(f"{stored_axes}->{spec.axes}", split)
    ours = rotary.convert_layout(ours, spec.layout, "half_split")
    whole_index = (slice(None),) * len(shape)
    np.testing.assert_array_equal(spec.read(reader, shape, whole_index), ours)
    random = np.random.default_rng(1)
    for _ in range(20):
        ends = [sorted(random.choice(size + 1, 2, replace=False)) for size in shape]
        index = tuple(slice(int(start), int(stop)) for start, stop in ends)
        np.testing.assert_array_equal(spec.read(reader, shape, index), ours[index])
        lengths = dict(zip(spec.axes, ours[index].shape, strict=True))
        lengths |= {axis: SIZES[axis] for axis in read_whole}
        assert reader.sizes["x"][-1] == math.prod(lengths.values())


CONFIG = dataclasses.replace(presets.tiny(), vocab_size=64, tied=False)


def random_checkpoint():
    """A Gemma of 2 layers under Hugging Face's names: (weight map, arrays by name)."""
    weight_map = make_weight_map(CONFIG, *spec_tables(CONFIG, "model."))
    shapes = runs.abstract_params(Decoder(CONFIG, sharding.one_device()))
    random, arrays = np.random.default_rng(0), {}
    for path, specs in weight_map.items():
        shape = parameter_at(shapes, path).shape
        for spec in specs:
            stored = spec.stored_shape(shape[-len(spec.axes) :])
            arrays[spec.name] = random.normal(size=stored).astype(np.float32)
    return weight_map, arrays


@pytest.mark.eight_devices
@pytest.mark.parametrize("mesh", ["fsdp=8", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2", "data=8"])
def test_each_device_reads_its_own_part_once(mesh):
    weight_map, arrays = random_checkpoint()
    reader = CountingReader(arrays)
    layout = sharding.make_layout(mesh)
    params = assemble(Decoder(CONFIG, layout), weight_map, reader)
    for path, specs in weight_map.items():
        parameter = parameter_at(params, path)
        stacked = parameter.ndim > len(specs[0].axes)
        shard = parameter.sharding.shard_shape(parameter.shape)
        for i, spec in enumerate(specs):
            layer = parameter[i] if stacked else parameter
            np.testing.assert_array_equal(spec.to_stored(np.asarray(layer)), arrays[spec.name])
            # Copies on several devices are one reading; no reading is larger than a device's part.
            assert (reader.counts[spec.name] == 1).all(), spec.name
            assert set(reader.sizes[spec.name]) == {math.prod(shard[-len(spec.axes) :])}
