"""The training step as the TPU's compiler leaves it, where libtpu is installed."""

import importlib.util
import re

import commands
import pytest

from rope_study import plan, sharding
from rope_study.reports import programs
from rope_study.sharding import hlo, topology
from rope_study.training import settings

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs pip install 'rope_study[tpu]'"
)
VOCABULARY, D_MODEL, MLP_HIDDEN = 8192, 256, 1024


@pytest.fixture(scope="module")
def program():
    """Two layers of Gemma in bf16 on four chips, whose embedding is far larger than a layer."""
    config = settings.default()
    config.data.length, config.data.batch_size = 128, 4
    config.model.preset, config.model.layers = "gemma_2b", 2
    config.model.d_model, config.model.mlp_hidden = D_MODEL, MLP_HIDDEN
    config.model.heads = 2
    (run,) = settings.resolve_one(config, VOCABULARY).runs
    layout = sharding.make_layout(devices=topology.topology_devices("v5e:2x2"))
    return programs.train_program(run, layout)


@pytest.fixture(scope="module")
def compiled(program):
    """The instructions of the executable."""
    return hlo.instructions(program.lowered.compile().as_text())


def test_attention_is_the_kernel(compiled):
    """Forward, again in the backward pass, and its gradients, once a layer."""
    kernels = [i for i in compiled if i.opcode == "custom-call" and "tpu_custom_call" in i.text]
    assert len(kernels) >= 3 and all(kernel.loop and kernel.times == 2 for kernel in kernels)


def test_no_exchange_of_the_whole_embedding_in_a_loop(compiled):
    """Gathered once, and its gradient summed once: in a loop it would be gigabytes a chunk."""
    table = VOCABULARY * D_MODEL * 2
    exchanges = hlo.collectives(compiled, 4)
    assert max(e.size for e in exchanges) >= table
    assert all(e.size < table for e in exchanges if e.instruction.loop)


def test_every_product_of_matrices_is_of_bf16(program):
    """What the kernel does beside it sums products along head_dim only, which is none."""
    products = re.findall(r"dot_general (.*) : \((.*)\) ->", program.lowered.as_text())
    assert len(products) > 20
    row_by_row = re.compile(r"batching_dims = \[0, 1, 2\] x \[0, 1, 2\], contracting_dims = \[3\]")
    f32 = [how for how, operands in products if "f32" in operands]
    assert all(row_by_row.search(how) for how in f32)


def test_loops_copy_no_weight(compiled):
    """The smallest of the MLP's arrays; activations are smaller here."""
    copies = [i for i in compiled if i.opcode in ("copy", "transpose") and i.loop]
    largest = max((size for copy in copies for size in copy.sizes), default=0)
    assert largest < D_MODEL * MLP_HIDDEN * 2


def test_what_does_not_fit_is_refused_with_sizes(capfd):
    """By the compiler's own message: 512 texts at once on four chips."""
    arguments = ("--topology=v5e:2x2", "--config.train.accumulate=1")
    assert commands.run_command(plan.main, "--config=configs/gemma_2b_wiki.py", *arguments) == 1
    printed = capfd.readouterr().out
    assert re.search(r"does not fit.*\([\d.]+G\) exceeds available HBM \(15\.75G\)", printed)
