"""Devices: the mesh, the rules that split arrays over it, processes, and what XLA is told.

Takes logical axis names; gives shardings and placed arrays. The only place that knows devices,
those of topologies that are not here too, and what compiled programs do on them: change Rules for
another way to split a model.
"""

from rope_study.sharding.mesh import MESH_AXES, Layout, Rules, make_layout, one_device
from rope_study.sharding.processes import (
    all_agree,
    check_same,
    is_main_process,
    largest,
    on_main,
    start,
    to_host,
    wait_for_all,
)
