"""How fast `prepare` is on one core, beside plain tokenizer calls and datatrove's, in one run.

    python benchmarks/prepare.py --text=wiki.jsonl.xz --tokenizer=bpe16k.model \
      --out=results/prepare.json

Each is a process of its own, in turns, several rounds; what is compared is CPU seconds, so that
other work on the machine changes ratios little. Megabytes are those of what is read: JSON Lines, or
the XML of the same articles. datatrove (pip install datatrove loguru orjson) may be missing.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

HEADER = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11"><siteinfo>
<sitename>Wikipedia</sitename><dbname>wiki</dbname><base>https://x/</base><generator>g</generator>
<case>first-letter</case><namespaces><namespace key="0" case="first-letter" /></namespaces>
</siteinfo>"""
PAGE = """<page><title>{title}</title><ns>0</ns><id>{i}</id><revision><id>{i}</id>
<timestamp>2026-01-01T00:00:00Z</timestamp>
<contributor><username>A</username><id>1</id></contributor>
<model>wikitext</model><format>text/x-wiki</format>
<text bytes="1" xml:space="preserve">{text}</text>
<sha1>x</sha1></revision></page>
"""

PREPARE = "{python} -m rope_study.prepare --workers=1 --tokenizer={tokenizer} --out={out}"
SENTENCEPIECE = """
import json, numpy, sentencepiece
processor = sentencepiece.SentencePieceProcessor(model_file={tokenizer!r})
texts = [json.loads(line)["text"] for line in open({text!r})]
ids = processor.encode(texts, num_threads=1)
numpy.concatenate([numpy.array(i, numpy.uint16) for i in ids])
"""
TOKENIZERS = """
import json, numpy, tokenizers
tokenizer = tokenizers.Tokenizer.from_file({json_tokenizer!r})
texts = [json.loads(line)["text"] for line in open({text!r})]
numpy.concatenate([numpy.array(e.ids, numpy.uint16) for e in tokenizer.encode_batch_fast(texts)])
"""
DATATROVE = """
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
if __name__ == "__main__":
    steps = [JsonlReader({folder!r}, glob_pattern="text.jsonl"),
             DocumentTokenizer({out!r}, tokenizer_name_or_path={json_tokenizer!r},
                               shuffle_documents=False)]
    LocalPipelineExecutor(steps, tasks=1, logging_dir={out!r} + "_log").run()
"""


def write_inputs(source: str, megabytes: float, folder: Path) -> None:
    """text.jsonl of that size, and wiki.xml with the same articles, each with some markup."""
    from rope_study.data.preparation.streams import cut

    lines, size = [], 0
    blocks = cut(Path(source), b"\n", 2**20)
    for line in itertools.chain.from_iterable(block.content.splitlines() for block in blocks):
        lines.append(line)
        size += len(line)
        if size > megabytes * 1e6:
            break
    (folder / "text.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with (folder / "wiki.xml").open("w") as file:
        file.write(HEADER)
        for i, row in enumerate(map(json.loads, lines)):
            title = escape(row.get("title", str(i)))
            # A link or a reference every few lines, as in a real article.
            text = row["text"].replace(". ", ".<ref>{{cite web|title=A|url=https://x.org}}</ref> ")
            text = f"{{{{Infobox|name={title}}}}}\n{text.replace(' the ', ' the [[A|a]] ')}"
            file.write(PAGE.format(title=title, i=i, text=escape(text)))
        file.write("</mediawiki>")


def train_tokenizer(text: Path, target: Path) -> None:
    """A byte-level BPE of 16,000 tokens: that of the library tokenizers, as for GPT-2."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = (json.loads(line)["text"] for line in itertools.islice(text.open(), 300))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=16_000, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(target))


def cpu_seconds(command: list[str]) -> float:
    """User and system seconds of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = measure(arguments, Path(name))
    about = {
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, Python"
        f" {platform.python_version()}",
        "input": f"{arguments.megabytes} MB of {Path(arguments.text).name}",
        "unit": "MB of input a CPU second, median of rounds; start of the process not counted",
    }
    arguments.out.write_text(json.dumps({**about, **results}, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    """MB a CPU second of everything."""
    write_inputs(arguments.text, arguments.megabytes, folder)
    train_tokenizer(folder / "text.jsonl", folder / "tokenizer.json")
    values = {
        "python": sys.executable, "tokenizer": arguments.tokenizer, "folder": str(folder),
        "text": str(folder / "text.jsonl"), "out": str(folder / "out"),
        "json_tokenizer": str(folder / "tokenizer.json"),
    }  # fmt: skip
    own = PREPARE.format(**values).split()
    jsonl, ignore = f"--input={folder / 'text.jsonl'}", "--near_duplicates=ignore"
    commands = {
        "prepare, JSON Lines": [*own, jsonl, ignore],
        "prepare, JSON Lines, near-duplicates reported": [*own, jsonl],
        "prepare, Wikipedia dump": [*own, f"--input={folder / 'wiki.xml'}", ignore],
        "sentencepiece, one batch": SENTENCEPIECE,
        "tokenizers, one batch": TOKENIZERS,
    }
    try:
        import datatrove  # noqa: F401  # type: ignore[import-not-found]

        commands["datatrove, JsonlReader and DocumentTokenizer"] = DATATROVE
    except ImportError:
        print("no datatrove: left out", file=sys.stderr)
    (folder / "empty.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n' * 30)
    start = cpu_seconds([*own, f"--input={folder / 'empty.jsonl'}", "--held_out=0.5", ignore])
    imports = cpu_seconds([sys.executable, "-c", "import json, numpy, sentencepiece, tokenizers"])
    seconds = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            for path in folder.glob("out*"):
                shutil.rmtree(path)
            if isinstance(command, str):
                script = folder / "script.py"
                script.write_text(command.format(**values))
                taken = cpu_seconds([sys.executable, str(script)]) - imports
            else:
                taken = cpu_seconds(command) - start
            seconds[name].append(taken)
            print(f"{name}: {taken:.2f} CPU s", file=sys.stderr)
    sizes = {name: (folder / "text.jsonl").stat().st_size for name in commands}
    sizes["prepare, Wikipedia dump"] = (folder / "wiki.xml").stat().st_size
    return {name: round(sizes[name] / 1e6 / statistics.median(s), 2) for name, s in seconds.items()}


if __name__ == "__main__":
    main()
