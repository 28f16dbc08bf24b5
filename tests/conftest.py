"""Tests run on one CPU device; `--devices=8` runs those of sharding on eight fake ones instead."""

import os

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
# `make test` optimises little; jaxlib 0.10 also still has the older emitters, which compile a
# third faster. In the environment, so that commands started by tests compile alike.
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1" and jax.__version_info__ < (0, 11):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {flags}"


def pytest_addoption(parser):
    parser.addoption("--devices", type=int, default=1, help="8: the tests that need eight devices")


def pytest_configure(config):
    jax.config.update("jax_num_cpu_devices", config.getoption("--devices"))


def pytest_collection_modifyitems(config, items):
    eight = config.getoption("--devices") == 8
    selected = [item for item in items if bool(item.get_closest_marker("eight_devices")) == eight]
    config.hook.pytest_deselected(items=[item for item in items if item not in selected])
    items[:] = selected


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of two hundred short documents that differ, enough for a run of tiny_config.py."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(200):
        (folder / f"{i}.txt").write_text(f"Document {i}. " + f"The {i} cats sat on {i} mats. " * 9)
    return folder


@pytest.fixture(scope="session")
def train_in(texts):
    """Trains one layer of tiny_config.py in a folder; gives the exit status."""
    from commands import run_command  # imports all of the project, which few tests need

    from rope_study import train

    def start(folder, *arguments):
        where = f"--config.workdir={folder}", f"--config.data.path={texts}"
        settings = "--config=tests/tiny_config.py", "--config.model.layers=1"
        return run_command(train.main, *settings, *where, *arguments)

    return start


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Stores of texts are kept among the tests' own files, also by commands that they start."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()
