"""Every python and sh snippet of README.md and docs/ is run as it stands, on one device and on 8.

They run in a copy of the project, in the order in which they stand; the python snippets of a page
share their names. Only the settings of configs/quickstart.py are smaller there. A snippet that
needs what is not there says so in a comment before it, <!-- not run: REASON -->, one of REASONS.
A random model in the place of stories260K.bin has what the snippets name, so only that they run
is tested, not what they print.
"""

import dataclasses
import itertools
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import sentencepiece
from test_llama2c import write as write_llama2c_model
from test_tokenizers import write_llama2c

from rope_study.decoder import variants
from rope_study.reports import results

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
names = {"ids": lambda page: page.name}

REASONS = (
    "makes an environment",
    "needs a downloaded model",
    "needs a GPU",
    "needs a TPU",
    "needs libtpu",
    "needs a bucket",
    "needs Transformers",
    "trains for minutes",
    "writes gigabytes",
)
MAKE_STUDY = "make study\n"
QUICKSTART = """
from rope_study.training import quickstart

def get_config():
    config = quickstart.config()
    config.data.length, config.train.steps, config.train.warmup = 32, 2, 1
    config.evaluate.windows = config.probe.windows = 8
    config.model.preset = "tiny"
    return config
"""
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.*?) -->\n)?^```(?P<language>\S*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Markdown's other kind of code; doctests stand in it, and tests/test_theory.py runs them.
INDENTED = re.compile(r"\n\n {4,}(?!>>>)\S.*")


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A fenced block; `line` is that of its first line of code."""

    language: str
    code: str
    reason: str | None
    line: int


def snippets(page: Path) -> Iterator[Snippet]:
    text = page.read_text()
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        yield Snippet(match["language"], match["code"], match["reason"], line)


# --- what stands there ------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, **names)
def test_snippets_have_a_language_and_known_reasons(page):
    found = list(snippets(page))
    assert page.read_text().count("```") == 2 * len(found)
    for snippet in found:
        assert snippet.language in ("python", "sh", "text"), snippet
        assert snippet.reason is None or snippet.reason in REASONS, snippet
        assert snippet.reason is None or snippet.language != "text", snippet
    comments = page.read_text().count("<!-- not run")
    assert comments == sum(snippet.reason is not None for snippet in found)
    assert INDENTED.findall(FENCE.sub("", page.read_text())) == []


@pytest.mark.parametrize("page", PAGES, **names)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_readme_is_short_and_its_numbers_are_those_in_results():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") < 120
    assert results.table(rows_of("quickstart")) in readme
    nope, *rotary = rows_of("table2_small_h200")
    assert nope["name"] == "nope()" and len(rotary) == 6
    for name, value in (("perplexity", "{:.3f}"), ("difference", "{:.3f}")):
        ends = (value.format(pick(row[name] for row in rotary)) for pick in (min, max))
        assert " to ".join(ends) in readme
    assert f"{nope['perplexity']:.3f}" in readme


SOURCES = {  # the part of a page with numbers -> the files that hold them
    "probes": (r"\*Result\.\*.*?(?=\*Limits|\n## |\n### )", ["probes_stories260K.txt"]),
    "interventions": (r"## On a trained.*?(?=## Limits)", ["interventions_stories260K.txt"]),
    "performance": (
        ".*",
        [
            *("train_step_h200.txt", "probe_h100.txt", "probe_h200.txt", "probe_cpu.txt"),
            *("table2_small_h200.txt", "quickstart.json", "plans.txt", "scaling_h200.json"),
            "scaling.json",
        ],
    ),
}
# Numbers that measure nothing: of theorems, names, calls and links.
NAMES = r"(?:Thm\.|Gemma|Llama) [\d.]+|\w+\([^)]*\)|\]\([^)]*\)|\d{4}\.\d{5}"


@pytest.mark.parametrize("name", SOURCES)
def test_decimal_numbers_of_a_page_are_in_its_results(name):
    part, files = SOURCES[name]
    page = (ROOT / f"docs/{name}.md").read_text()
    said = re.sub(NAMES, "", "\n".join(re.findall(part, page, re.DOTALL)))
    held = "\n".join((ROOT / "results" / file).read_text() for file in files)
    values = [float(value.replace(",", "")) for value in re.findall(r"\d[\d,]*\.?\d*", held)]
    numbers = re.findall(r"(?<![\w.])\d+\.\d+", said)
    assert len(numbers) > 20
    for number in numbers:
        decimals = len(number.partition(".")[2])
        assert any(f"{value:.{decimals}f}" == number for value in values), number


def rows_of(name: str) -> list[dict]:
    rows = json.loads((ROOT / "results" / f"{name}.json").read_text())["encodings"]
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def test_architecture_names_files_that_exist_and_imports_run_as_it_draws_them():
    page = (ROOT / "docs/architecture.md").read_text()
    house, _, rest = page.partition("## What was renamed")
    assert rest
    for path in re.findall(r"`((?:[a-z0-9_]+/)*[a-z0-9_]+\.(?:py|md|html))`", house):
        assert any((root / path).exists() for root in (ROOT, ROOT / "rope_study")), path
    floors = re.search(r"```text\n(errors.*?)```", house, re.DOTALL)[1]
    order = [word.rstrip("/") for line in floors.splitlines() for word in rooms(line)]
    package = ROOT / "rope_study"
    parts = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert sorted(order) == sorted(parts - {"__init__"})
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        for other in imported(file) & set(order) if room != "__init__" else ():
            assert order.index(other) <= order.index(room), f"{file} imports {other}"


def rooms(line: str) -> list[str]:
    """The rooms of one floor of the drawing: what stands before the first run of two spaces."""
    return re.split(r"\s{2,}", line)[0].split()


def imported(file: Path) -> set[str]:
    """The rooms that a module imports from, by their first name after the package's."""
    text, found = file.read_text(), set()
    for module, listed in re.findall(r"^\s*from rope_study(\S*) import (\([^)]*\)|.*)", text, re.M):
        first = module.split(".")[1] if module else None
        found |= {first} if first else set(re.findall(r"\w+", listed))
    return found


# --- what runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory, pytestconfig):
    """A copy of the project in which `make study` was run, with a text and a model beside it."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("benchmarks", "configs", "docs", "results", "tests/data"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Makefile", "README.md", "constraints.txt", "setup.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "configs/quickstart.py").write_text(QUICKSTART)
    write_environment(folder / ".venv")
    write_stories(folder)
    write_text(folder)
    run_shell(MAKE_STUDY, folder, pytestconfig.getoption("devices"))
    return folder


def write_environment(folder: Path) -> None:
    """What `make` would install, as links to what runs the tests; newer than setup.py."""
    (folder / "bin").mkdir(parents=True)
    for name, start in {"python": "", "rope-study": " -m rope_study.command"}.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{start} "$@"\n')
        script.chmod(0o755)
    (folder / "ready").touch()


def write_stories(folder: Path) -> None:
    """A model of llama2.c by the name of stories260K, of random weights and three of its layers."""
    D, F, L, N, K, V, T = 64, 172, 3, 8, 4, 512, 512
    write_llama2c_model(folder / "stories260K.bin", sizes=(D, F, L, N, K, V, T))
    pairs = map("".join, itertools.product(" abcdefghijklmno", repeat=2))
    pieces = [(-score, pair) for score, pair in enumerate(pairs)]
    write_llama2c(folder / "tok512.bin", pieces[: V - 259])


def write_text(folder: Path) -> None:
    """A corpus of two files, and a SentencePiece model of it."""
    documents = [
        f"Page {n}. " + "To be, or not to be, that is the question. " * 9 for n in range(99)
    ]
    (folder / "wiki").mkdir()
    plain = folder / "wiki/all.txt"
    plain.write_text("\n".join(documents))
    sentencepiece.SentencePieceTrainer.train(
        input=str(plain), model_prefix=str(folder / "bpe"), vocab_size=64, model_type="bpe",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    plain.unlink()
    for name, part in {"a": documents[:50], "b": documents[50:]}.items():
        with lzma.open(folder / f"wiki/{name}.jsonl.xz", "wt") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in part)


def run_shell(code: str, folder: Path, devices: int) -> None:
    environment = os.environ | {
        "PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{folder}",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(folder / ".cache"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TQDM_DISABLE": "1",
    }
    done = subprocess.run(
        ["sh", "-e", "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def run_page(page: Path, folder: Path, devices: int) -> None:
    """All snippets of a page, in order."""
    namespace: dict = {"__name__": "__main__"}
    for snippet in snippets(page):
        if snippet.reason or snippet.language == "text":
            continue
        if snippet.language == "sh":
            if snippet.code != MAKE_STUDY:  # was run already
                run_shell(snippet.code, folder, devices)
            continue
        if file := re.match(r"# (\w+\.py)\n", snippet.code):
            (folder / file[1]).write_text(snippet.code)
        # Blank lines in front, so that a traceback shows the line of the page.
        exec(compile("\n" * (snippet.line - 1) + snippet.code, page, "exec"), namespace)


@pytest.fixture
def at_home(project, monkeypatch):
    """Inside the copy; what a page registers or imports from there is forgotten after it."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    for registry in variants.REGISTRIES.values():
        monkeypatch.setattr(registry, "_makers", dict(registry._makers))
    matplotlib.use("agg")
    before = set(sys.modules)
    yield project
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(project)):
            del sys.modules[name]
    for made in ("probed", "runs/mesh", "runs/wiki"):
        shutil.rmtree(project / made, ignore_errors=True)


@pytest.mark.parametrize("page", PAGES, **names)
def test_snippets_run(page, at_home):
    run_page(page, at_home, devices=1)


@pytest.mark.eight_devices
@pytest.mark.parametrize("page", PAGES, **names)
def test_snippets_run_on_eight_devices(page, at_home):
    run_page(page, at_home, devices=8)
