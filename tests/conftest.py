"""All tests run on eight fake CPU devices; what they need of ../shared is nothing."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
