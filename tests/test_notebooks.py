"""The notebooks run from top to bottom on the small model of `make study`, and say what is so."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from rope_study import checkpoints, probes
from rope_study.data import load_texts
from rope_study.interventions import ablate, band, measure, random_band, unrotate
from rope_study.training.quickstart import small_model

FOLDER = Path(__file__).parents[1] / "colabs"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.slow
def test_notebooks_run_and_the_small_model_shows_the_papers_picture(tmp_path):
    """One test, so that the model is trained once."""
    # A process of its own, with one device as on the user's machine.
    train = "from rope_study.small_model import small_model; small_model()"
    subprocess.run([sys.executable, "-c", train], cwd=tmp_path, check=True)
    for path in NOTEBOOKS:
        run_notebook(path, tmp_path)
    check_picture(small_model(tmp_path / "runs" / "quickstart"))


def run_notebook(path: Path, workplace: Path) -> None:
    """From top to bottom, in a folder that has the small model."""
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    place = {"metadata": {"path": str(workplace)}}
    NotebookClient(notebook, timeout=180, kernel_name="python3", resources=place).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    printed = "".join(output.text for output in shown if output.get("name") == "stdout")
    if path.stem == "3_positional_heads":
        verdicts = re.findall(r"^(They|Pos|The control).*: (True|False)$", printed, re.M)
        assert [verdict for _, verdict in verdicts] == ["True", "True", "False", "True"]
    if path.stem == "6_your_model":
        assert (workplace / "probed" / "index.html").stat().st_size > 10_000


def test_there_are_six_of_one_kind():
    """Each installs in the same way, and another model is one cell."""
    assert [path.stem[0] for path in NOTEBOOKS] == list("123456")
    cells = [nbformat.read(path, as_version=4).cells for path in NOTEBOOKS]
    for index in (1, 2):
        assert len({one[index].source for one in cells}) == 1
    for one in cells:
        assert sum("CHECKPOINT =" in cell.source for cell in one if cell.cell_type == "code") == 1


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
    found = measure(decoder, params, [batch], edits, copies=0)
    near = (found.previous + found.diagonal).values.reshape(len(edits) + 1, -1)
    heads = np.argsort(-near[0])[:4]
    near = dict(zip(["plain", *edits], near[:, heads].mean(1), strict=True))
    assert near["plain"] > 0.5
    assert near["fast"] < near["plain"] / 2
    assert near["slow"] > 0.9 * near["plain"]
    assert near["control"] > 1.5 * near["fast"]
    norms = usage.q.mean(["layer", "head"]).values * usage.k.mean(["layer", "kv_head"]).values
    assert norms[:8].sum() > 2 * norms[-8:].sum()
    loss = found.loss_difference.sel
    assert loss(intervention="slow half missing") > 0.02
    assert abs(loss(intervention="slow half still")) < 0.01
