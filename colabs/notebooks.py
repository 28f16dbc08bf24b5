"""Writes the cells that the notebooks share, and runs them with their outputs: make notebooks.

It runs each from top to bottom in the repository's folder, on a released model or on
runs/quickstart; both are made where they are missing. Nothing that changes from run to run is kept:
no times, no progress bars.
"""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = sorted(FOLDER.glob("[0-9]_*.ipynb"))
SETUP = (FOLDER.parent / "setup.py").read_text()
REPOSITORY = re.findall(r'^REPOSITORY = "https://github\.com/(.+)"$', SETUP, re.M)[0]
FIRST = ("badge", "title", "install", "checkpoint", "model")  # ids of the first cells of each
BEGIN_RELEASED = ("2_frequency_usage.ipynb", "6_your_model.ipynb")  # with a released model
METADATA = {
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    f"(https://colab.research.google.com/github/{REPOSITORY}/blob/main/colabs/NAME)"
)

INSTALL = f"""
# Installs rope_study where it is missing; the jax, jaxlib and numpy that are here stay as they are.
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

SOURCE = "git+https://github.com/{REPOSITORY}"

found = importlib.util.find_spec("rope_study")
if found is None or found.origin is None:  # a mere folder of that name, such as a clone, is none
    present = [name for name in ("jax", "jaxlib", "numpy") if importlib.util.find_spec(name)]
    versions = [f"{{name}}=={{importlib.metadata.version(name)}}" for name in present]
    pathlib.Path("present.txt").write_text("\\n".join(versions))
    command = [sys.executable, *"-m pip install --quiet --constraint present.txt".split(), SOURCE]
    pip = subprocess.run(command, capture_output=True, text=True)
    if "ResolutionImpossible" in pip.stderr:
        sys.exit(
            f"rope_study does not fit {{', '.join(versions)}}: run %pip install --upgrade jax"
            ' (GPU: "jax[cuda12]", TPU: "jax[tpu]"), restart the runtime, run this cell again'
        )
    if pip.returncode:
        sys.exit(f"pip could not install rope_study:\\n{{pip.stderr}}")
    importlib.invalidate_caches()

%matplotlib inline
"""

CHECKPOINT = """
# The one cell to change for another model: a path, as in CHECKPOINT = "gemma-7b" for a downloaded
# folder (Gemma 1 to 4, Llama 3, Mistral, Qwen 3, llama2.c, or a run of this project).
from rope_study.training.quickstart import small_model

CHECKPOINT = small_model()  # the RoPE decoder of `make study`; trained now where it is missing
"""

RELEASED = """
# The one cell to change for another model: a path, as in CHECKPOINT = "gemma-7b" for a downloaded
# folder (Gemma 1 to 4, Llama 3, Mistral, Qwen 3, llama2.c, or a run of this project), or "gemma3".
from rope_study import checkpoints

CHECKPOINT = checkpoints.fetch("smollm2")  # SmolLM2 135M in 4 bits, 93 MB; needs no account
"""

MODEL = """
import rope_study

decoder, params = rope_study.load(CHECKPOINT)
tokenizer = rope_study.load_tokenizer(CHECKPOINT)
"""

PASSAGES = """
from rope_study.data import load_texts

passages = [text.text for text in load_texts()]  # ten, written for this project
batch = tokenizer.encode_batch(passages, length=256)  # tokens[text, 256] and their weights
"""


def shared_cells(name: str) -> dict[str, str]:
    """The sources of the cells that notebooks share, by the cells' ids; `name` is the file's."""
    sources = {
        "badge": BADGE.replace("NAME", name),
        "install": INSTALL,
        "checkpoint": RELEASED if name in BEGIN_RELEASED else CHECKPOINT,
        "model": MODEL,
        "passages": PASSAGES,
    }
    return {cell_id: source.strip() for cell_id, source in sources.items()}


def write_shared_cells(notebook: NotebookNode, name: str) -> None:
    """Puts the shared sources into the cells with their ids."""
    shared = shared_cells(name)
    for cell in notebook.cells:
        cell.source = shared.get(cell.id, cell.source)


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Runs it from top to bottom in that folder; outputs are the same in each run.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised.
    """
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources=place,
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Progress bars and warnings of the machine go to stderr.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if text := output.get("data", {}).get("text/plain"):
                    output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", text)


def main() -> None:
    """Writes and runs all of them, in place."""
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        write_shared_cells(notebook, path.name)
        execute(notebook, FOLDER.parent)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
