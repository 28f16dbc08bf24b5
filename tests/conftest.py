"""Tests run on one CPU device; `--devices=8` runs those of sharding on eight fake ones instead."""

import jax

jax.config.update("jax_platforms", "cpu")


def pytest_addoption(parser):
    parser.addoption("--devices", type=int, default=1, help="8: the tests that need eight devices")


def pytest_configure(config):
    jax.config.update("jax_num_cpu_devices", config.getoption("--devices"))


def pytest_collection_modifyitems(config, items):
    eight = config.getoption("--devices") == 8
    wanted = [item for item in items if bool(item.get_closest_marker("eight_devices")) == eight]
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = wanted
