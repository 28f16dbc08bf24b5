"""The numbers of a page of docs/: its Python snippets, with the value of every expression in them.

    python benchmarks/documented.py docs/probes.md > results/probes_stories260K.txt

Run it in a folder that holds what the page loads, such as stories260K.bin and tok512.bin of
llama2.c.
"""

import argparse
import ast
import importlib.metadata
import platform
import re
from pathlib import Path

import numpy as np
import xarray

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LIBRARIES = ("jax", "flax", "numpy", "xarray")


def main() -> None:
    """Runs the page and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    print(f"# python benchmarks/documented.py {page}")
    print(f"# Python {platform.python_version()}, {versions}")
    np.set_printoptions(precision=3, suppress=True, threshold=1000, linewidth=100)
    namespace: dict = {}
    for code in FENCE.findall(page.read_text()):
        for statement in ast.parse(code).body:
            if not isinstance(statement, ast.Expr):
                exec(compile(ast.Module([statement], []), str(page), "exec"), namespace)
                continue
            value = statement.value
            for expression in value.elts if isinstance(value, ast.Tuple) else [value]:
                value = eval(compile(ast.Expression(expression), str(page), "eval"), namespace)
                print(f"\n{ast.unparse(expression)}\n{_shown(value)}")


def _shown(value: object) -> str:
    return str(value.values if isinstance(value, xarray.DataArray) else value)


if __name__ == "__main__":
    main()
