"""A batch in parts gives the losses of the whole batch, in less memory, and moves no tokens."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_study import sharding
from rope_study.decoder import Decoder, fit_layout, presets
from rope_study.errors import UserError
from rope_study.training import settings
from rope_study.training.gradients import check_batch
from rope_study.training.trainer import Trainer

STEPS = 3
ROWS, LENGTH = 16, 32
# With rules; `vocab` stays whole along `data` alone, so that the loss sums over no devices.
MESHES = {
    "fsdp=8": sharding.Rules(),
    "data=8": sharding.Rules(vocab=()),
    "data=2,fsdp=2,tensor=2": sharding.Rules(),
}
pytestmark = pytest.mark.eight_devices


def windows(step):
    return np.random.default_rng(step).integers(0, 256, (ROWS, LENGTH + 1), dtype=np.int32)


def make_trainer(layout, accumulate):
    config = settings.default()
    config.train.steps, config.train.warmup, config.train.accumulate = STEPS, 1, accumulate
    decoder = Decoder(presets.tiny(), fit_layout(presets.tiny(), layout))
    return Trainer(decoder, settings.TrainSettings(**config.train.to_dict()), seed=0)


def compiled_step(trainer):
    batch = jax.ShapeDtypeStruct((ROWS, LENGTH + 1), jnp.int32)
    return trainer.step.lower(trainer.abstract_state, batch).compile()


def train(trainer, step):
    state, losses = trainer.init(), []
    for number in range(STEPS):
        state, metrics = step(state, trainer.layout.place(windows(number)))
        losses.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
    return losses


@pytest.fixture(scope="module")
def whole():
    """(loss, gradient norm) of every step of whole batches on one device."""
    trainer = make_trainer(sharding.one_device(), accumulate=1)
    return train(trainer, trainer.step)


@pytest.fixture(scope="module")
def in_parts():
    """For every mesh a trainer of two parts, and its compiled step."""
    layouts = {mesh: sharding.make_layout(mesh, rules) for mesh, rules in MESHES.items()}
    trainers = {mesh: make_trainer(layout, accumulate=2) for mesh, layout in layouts.items()}
    return {mesh: (trainer, compiled_step(trainer)) for mesh, trainer in trainers.items()}


@pytest.mark.parametrize("mesh", MESHES)
def test_losses_equal_those_of_whole_batches(mesh, whole, in_parts):
    """Only the order of f32 sums differs; measured: 1.5e-7."""
    np.testing.assert_allclose(train(*in_parts[mesh]), whole, rtol=5e-7)


def test_parts_of_one_device_too(whole):
    trainer = make_trainer(sharding.one_device(), accumulate=4)
    np.testing.assert_allclose(train(trainer, trainer.step), whole, rtol=5e-7)


def collectives(step):
    """(line, whether it is outside all loops) of every communication of a program."""
    outside = False
    for line in step.as_text().splitlines():
        if line.endswith("{"):
            outside = line.startswith("ENTRY")
        if re.search(r" (all-|reduce-scatter|collective-)[a-z-]*\(", line):
            yield line, outside


@pytest.mark.parametrize("mesh", MESHES)
def test_cutting_a_batch_moves_no_tokens(mesh, in_parts):
    """What moves some is the look-up of the embedding, in the loop over parts."""
    found = list(collectives(in_parts[mesh][1]))
    assert found and not [line for line, outside in found if outside and "s32[" in line]


def test_devices_of_the_same_parameters_sum_gradients_once(in_parts):
    """Along `data`: nothing is reduced over devices in the loop over parts."""
    sums = [pair for pair in collectives(in_parts["data=8"][1]) if "all-reduce(" in pair[0]]
    assert sums and all(outside for _, outside in sums), sums


def test_parts_take_less_memory():
    """Of what a step holds beside parameters, most is activations: of a quarter of the rows."""
    layout = sharding.one_device()
    whole, parts = (
        compiled_step(make_trainer(layout, accumulate)).memory_analysis().temp_size_in_bytes
        for accumulate in (1, 4)
    )
    assert parts < whole / 2


@pytest.mark.parametrize("rows, accumulate", [(10, 1), (12, 2), (8, 3)])
def test_rows_of_a_part_divide_over_devices(rows, accumulate):
    message = rf"batch_size={rows} is no multiple of .*accumulate={accumulate} times 4 device"
    with pytest.raises(UserError, match=message):
        check_batch(rows, LENGTH, accumulate, sharding.make_layout("fsdp=4,tensor=2"))


def test_parts_of_a_batch_count_by_their_targets():
    """A part with few of them weighs less than one with many."""
    weights = np.ones((ROWS, LENGTH), np.float32)
    weights[1::2, 3:] = 0
    results = []
    for layout, parts in [(sharding.one_device(), 1), (sharding.make_layout("data=2,fsdp=-1"), 2)]:
        trainer = make_trainer(layout, parts)
        batch = layout.place(windows(0)), layout.place(weights)
        metrics = trainer.step(trainer.init(), batch)[1]
        results.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    np.testing.assert_allclose(*results, rtol=5e-7)
