"""The house: imports run one way, no module is in a circle, and public names are there."""

import ast
from pathlib import Path

import pytest

import rope_study

PACKAGE = Path(rope_study.__file__).parent
# From the ground up: a folder may import those before it, and its own.
FLOORS = (
    ("errors",),
    ("checks",),
    ("files",),
    ("sharding", "data"),
    ("registry",),
    ("rotary",),
    ("decoder",),
    ("checkpoints",),
    ("probes", "theory", "training"),
    ("interventions", "figures"),
    ("reports",),
    ("command",),
    ("study", "train", "prepare", "evaluate", "probe", "generate", "encodings", "plan"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# On one floor, but one way.
BESIDE = {("training", "probes"), ("figures", "interventions")}


def imports(file: Path) -> set[str]:
    """The modules of the package that a file imports, as "decoder.config"; not inside functions."""
    modules = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rope_study"):
            base = node.module.removeprefix("rope_study").lstrip(".")
            modules |= {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
    return modules


FILES = [file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    """Nothing imports a command, and no folder one above it."""
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(file):
        imported = module.split(".")[0]
        lower = FLOOR[imported] < FLOOR[room] or imported == room or (room, imported) in BESIDE
        assert lower, f"{file.relative_to(PACKAGE)} imports {module}"


def test_no_modules_import_each_other():
    """By their own import lines, whatever the folders say."""
    known = {str(f.relative_to(PACKAGE).with_suffix("")).replace("/", "."): f for f in FILES}
    imported = {name: imports(file) for name, file in known.items()}
    edges = {
        name: {m for m in known if any(i == m or i.startswith(f"{m}.") for i in modules)}
        for name, modules in imported.items()
        if not name.endswith("__init__")
    }
    visited: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in visited:
            for dependency in edges.get(name, ()):
                visit(dependency, (*path, name))
            visited.add(name)

    for name in edges:
        visit(name, ())


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = rope_study.no_such_name


@pytest.mark.parametrize(
    "folder", [f.parent for f in FILES if f.name == "__init__.py"], ids=lambda folder: folder.name
)
def test_every_folder_says_what_it_is_for(folder):
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_stay_small(file):
    assert len(file.read_text().splitlines()) <= 450, "is it still one subject?"
