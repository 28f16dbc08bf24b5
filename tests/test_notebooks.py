"""The notebooks are as they should be committed; run from top to bottom, they say what is so.

The second part trains the small model and takes minutes: make notebooks-test.
"""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from colabs import notebooks
from rope_study import checkpoints, probes
from rope_study.data import load_texts
from rope_study.interventions import ablate, band, measure, random_band, unrotate
from rope_study.training.quickstart import small_model

PATHS = notebooks.NOTEBOOKS
RESULTS = [p for p in (notebooks.FOLDER.parent / "results").iterdir() if p.is_file()]
FLOAT = re.compile(r"-?\d+\.\d+")
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def test_there_are_six():
    assert [path.stem[0] for path in PATHS] == list("123456")


@each_notebook
def test_first_cells_are_what_the_helper_writes(path: Path):
    """Badge, install, checkpoint and model are the same in all, with the address of setup.py."""
    cells = nbformat.read(path, as_version=4).cells
    assert tuple(cell.id for cell in cells[: len(notebooks.FIRST)]) == notebooks.FIRST
    shared = notebooks.shared_cells(path.name)
    for cell in cells:
        assert cell.source == shared.get(cell.id, cell.source), "run make notebooks"
        if cell.id not in shared:
            assert "CHECKPOINT =" not in cell.source
            assert "github.com" not in cell.source


@each_notebook
def test_outputs_are_those_of_one_run_from_top_to_bottom(path: Path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(cell.metadata for cell in code), "times of execution differ from run to run"
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    texts = [output.get("text") or output.data.get("text/plain", "") for output in outputs]
    assert not re.search(r"(^|[\s'\"(])/\w+/|0x[0-9a-f]{6}", "\n".join(texts)), "of this machine"
    assert path.stat().st_size < 1_000_000


@each_notebook
def test_code_compiles_and_names_of_rope_study_exist(path: Path):
    cells = nbformat.read(path, as_version=4).cells
    magics = TransformerManager()
    modules: dict[str, ModuleType] = {}
    for cell in cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(magics.transform_cell(cell.source))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name == "rope_study"]
                modules |= {name: importlib.import_module(name) for name in names}
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("rope_study"):
                for alias in node.names:
                    member = _member(node.module, alias.name)
                    if isinstance(member, ModuleType):
                        modules[alias.name] = member
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = modules.get(node.value.id)
                assert module is None or hasattr(module, node.attr), ast.unparse(node)
    assert "rope_study" in modules


def _member(module: str, name: str) -> object:
    """What `from module import name` gives."""
    package = importlib.import_module(module)
    return getattr(package, name, None) or importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("clone", ["rope_study", "elsewhere"])
def test_the_first_cell_installs_beside_a_clone(clone, tmp_path):
    """In an environment without the package: its folder, of the same name, is not it."""
    (tmp_path / clone / "rope_study").mkdir(parents=True)
    cell = notebooks.INSTALL.replace("%matplotlib inline", "")
    # pip is not run: the cell is to ask for it.
    stub = "import subprocess, sys\n"
    stub += "subprocess.run = lambda command, **_: sys.exit(' '.join(command[3:]))\n"
    bare = subprocess.run(
        [sys.executable, "-S", "-c", stub + cell],
        cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert bare.stderr.startswith("install") and notebooks.REPOSITORY in bare.stderr, bare.stderr


MODELS = ("**The small model", "**SmolLM2")


def test_numbers_in_what_they_say_are_in_what_they_printed():
    """Of the texts about a model: two decimals, as in the outputs of that notebook."""
    for path in PATHS:
        cells = nbformat.read(path, as_version=4).cells
        said = [cell.source for cell in cells if cell.source.startswith(MODELS)]
        printed = [o.get("text", "") for cell in cells for o in cell.get("outputs", [])]
        printed += [p.read_text() for p in RESULTS if any(p.name in text for text in said)]
        missing = [
            number
            for text in said
            for number in re.findall(r"\b0\.\d+", re.sub(r"[\w.]*0\.\d+-RoPE|p = [\d.]+", "", text))
            if not _appears(number, "".join(printed))
        ]
        assert missing == [], path.name


def _appears(number: str, printed: str) -> bool:
    """Whether a printed number rounds to this one."""
    decimals = len(number.partition(".")[2])
    return any(f"{abs(float(found)):.{decimals}f}" == number for found in FLOAT.findall(printed))


# --- run ------------------------------------------------------------------------------------------


@pytest.mark.notebooks
def test_notebooks_run_and_the_small_model_shows_the_papers_picture(tmp_path):
    """One test, so that the model is trained once."""
    # A process of its own, with one device as on the user's machine.
    train = "from rope_study.training.quickstart import small_model; small_model()"
    subprocess.run([sys.executable, "-c", train], cwd=tmp_path, check=True)
    for path in PATHS:
        run_notebook(path, tmp_path)
    check_picture(small_model(tmp_path / "runs" / "quickstart"))


def run_notebook(path: Path, workplace: Path) -> None:
    """From top to bottom, in a folder that has the small model."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    notebooks.execute(notebook, workplace)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    if path.stem == "3_positional_heads":
        verdicts = re.findall(r"^(They|The control).*: (True|False)$", printed, re.M)
        assert [verdict for _, verdict in verdicts] == ["True", "True", "False", "True"]
    if path.stem == "6_your_model":
        assert (workplace / "runs" / "probed" / "index.html").stat().st_size > 10_000


def check_picture(run: Path) -> None:
    """Positional heads exist, use the fastest pairs, and break without them and not otherwise."""
    decoder, params = checkpoints.load(run)
    tokenizer = checkpoints.load_tokenizer(run)
    batch = tokenizer.encode_batch([text.text for text in load_texts()[:8]], length=256)
    usage = probes.run(decoder, params, [batch], [probes.frequency_usage])["frequency_usage"]
    fast, slow = band(fastest=0.25), band(slowest=0.25)
    edits = {
        "fast": ablate(fast),
        "slow": ablate(slow),
        "control": ablate(random_band(usage, fast, seed=0)),
        "slow half missing": ablate(band(slowest=0.5)),
        "slow half still": unrotate(band(slowest=0.5)),
    }
    effects = measure(decoder, params, [batch], edits, copies=0)
    by_head = (effects.previous + effects.diagonal).values.reshape(len(edits) + 1, -1)
    heads = np.argsort(-by_head[0])[:4]
    near = dict(zip(["plain", *edits], by_head[:, heads].mean(1), strict=True))
    assert near["plain"] > 0.5
    assert near["fast"] < near["plain"] / 2
    assert near["slow"] > 0.9 * near["plain"]
    assert near["control"] > 1.5 * near["fast"]
    norms = usage.q.mean(["layer", "head"]).values * usage.k.mean(["layer", "kv_head"]).values
    assert norms[:8].sum() > 2 * norms[-8:].sum()
    loss = effects.loss_difference.sel
    assert loss(intervention="slow half missing") > 0.02
    assert abs(loss(intervention="slow half still")) < 0.01
