"""Which kind of checkpoint a path holds, and the decoder with its parameters from any of them."""

import os
from pathlib import Path

from rope_study import data, sharding
from rope_study.checkpoints import gemma_orbax, gguf, hugging_face, llama2c, runs
from rope_study.checkpoints.assemble import assemble, check_dtype, check_shapes, refuse_extra
from rope_study.checkpoints.hugging_face.tensor_files import PICKLE_ENDINGS
from rope_study.checkpoints.weight_map import OpenCheckpoint, WeightMap
from rope_study.checks import checked
from rope_study.data.gguf_file import ENDING as GGUF_ENDING
from rope_study.decoder import Decoder, DecoderConfig, fit_layout, variants
from rope_study.errors import UserError
from rope_study.files.paths import to_path
from rope_study.rotary import Rotary


@checked
def load(
    path: str | os.PathLike,
    *,
    rotary: Rotary | str | None = None,
    dtype: str | None = None,
    mesh: str = "fsdp=-1",
    step: int | None = None,
    config: DecoderConfig | None = None,
) -> tuple[Decoder, dict]:
    """A decoder and its trained parameters, from any checkpoint that this project reads.

    Args:
      path: a run's folder, such as runs/quickstart/rope_theta10000_seed0; a Hugging Face folder
        (config.json with safetensors: Gemma 1 to 4, Llama 3, Mistral, Qwen 3); an official Gemma
        checkpoint (Orbax: Gemma 1 to 3); a GGUF file of llama.cpp, or a folder with one; or a
        model file of llama2.c.
      rotary: what to run it with instead of what it was trained with, in all layers: an encoding,
        or a variant such as "yarn_rope(factor=4, context=8192) + log_n(train_length=8192)".
      dtype: of the parameters: "float32", "bfloat16" or "float16"; as stored where not given
        (float32 from GGUF).
      mesh: how to split it over the devices.
      step: which checkpoint of a run; the newest where not given.
      config: the decoder of an official Gemma of a size that was not released.

    Returns:
      (decoder, params): `decoder.apply({"params": params}, tokens)` gives (logits, aux).

    Raises:
      UserError: no checkpoint at that path, an unsupported or damaged one, or `rotary` needs arrays
        that it does not have. Nothing is made up: an array that is missing is an error.
    """
    path = _existing(path)
    check_dtype(dtype)
    if step is None and (checkpoint := _open(path, config)) is not None:
        return _load(checkpoint, rotary, dtype, mesh)
    return runs.load(path, rotary=rotary, step=step, mesh=mesh, dtype=dtype)


def load_config(path: str | os.PathLike) -> DecoderConfig:
    """The decoder of a checkpoint without its parameters; UserError as in `load`."""
    path = _existing(path)
    checkpoint = _open(path, None)
    return runs.read_model(path) if checkpoint is None else checkpoint.config


def load_tokenizer(
    path: str | os.PathLike, tokenizer: str | os.PathLike | None = None
) -> data.Tokenizer:
    """The tokenizer of a checkpoint: a run's, or the one in a released checkpoint's folder.

    Args:
      path: of the checkpoint, as `load` takes it.
      tokenizer: the path of one of another name or place, or "bytes"; see data.load_tokenizer.

    Raises:
      UserError: there is none, or several, or it is damaged.
    """
    if tokenizer is not None:
        return data.load_tokenizer(tokenizer)
    path = _existing(path)
    if (path / runs.MODEL_FILE).exists():
        return runs.load_tokenizer(path)
    if _is_gguf(path):
        return data.load_tokenizer(path)
    folder = path.parent if path.is_file() else path
    if path.is_file() and len(files := sorted(folder.glob("tok*.bin"))) == 1:
        return data.load_tokenizer(files[0])  # a llama2.c model's, whatever else lies there
    official = not (folder / "config.json").exists() and gemma_orbax.is_orbax(folder)
    if official and not list(folder.glob("tokenizer*")) and list(folder.parent.glob("*.model")):
        folder = folder.parent  # Kaggle's archives have it beside the folder of the arrays
    return data.load_tokenizer(folder)


def _existing(path: str | os.PathLike) -> Path:
    """~ expanded; UserError for what is no path, or leads nowhere."""
    existing = to_path(path, "checkpoint")
    if not existing.exists():
        raise UserError(
            f"no run at {path}, nor any other checkpoint: it does not exist; {RECOGNISED}"
            f"{_hub_hint(existing)}",
            "checkpoint",
        )
    return existing


def _open(path: Path, config: DecoderConfig | None) -> OpenCheckpoint | None:
    """The checkpoint of another format, or None for a run of this project."""
    if path.is_file():
        if path.suffix in PICKLE_ENDINGS and _is_pickle(path):
            raise UserError(
                f"{path} is a file of PyTorch, and pickle files are refused because loading one can"
                " run any code it holds: convert it to safetensors where you trust it"
            )
        if path.suffix == ".bin":
            return llama2c.open_checkpoint(path)
        if path.suffix == GGUF_ENDING:
            return gguf.open_checkpoint(path)
        raise UserError(f"{path} is a file: {RECOGNISED}")
    if (path / runs.MODEL_FILE).exists():
        return None
    if _is_gguf(path):
        return gguf.open_checkpoint(path)
    if (path / "config.json").exists():
        return hugging_face.open_checkpoint(path)
    if list(path.glob(f"*/{runs.MODEL_FILE}")):  # a study: its error names the runs below
        return None
    if gemma_orbax.is_orbax(path):
        return gemma_orbax.open_checkpoint(path, config)
    raise UserError(f"no checkpoint in {path}: {RECOGNISED}")


def _is_pickle(file: Path) -> bool:
    """Of PyTorch: a zip archive, or a bare pickle of protocol 2 or later."""
    with file.open("rb") as stream:
        start = stream.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def _hub_hint(path: Path) -> str:
    """For the name of a model where its folder should be."""
    if path.is_absolute() or len(path.parts) != 2 or Path(path.parts[0]).exists():
        return ""
    return "; nothing is downloaded here: fetch a model by its name first, and give its folder"


def _is_gguf(path: Path) -> bool:
    """A GGUF file, or a folder with some; safetensors beside them are not quantised."""
    if path.is_file():
        return path.suffix == GGUF_ENDING
    return any(path.glob(f"*{GGUF_ENDING}")) and not any(path.glob("*.safetensors"))


RECOGNISED = (
    "give the folder of a run (model.json), of Hugging Face (config.json and *.safetensors) or of"
    " an official Gemma checkpoint (Orbax's _METADATA), a GGUF file (*.gguf), or a model file of"
    " llama2.c (*.bin)"
)


def _load(
    checkpoint: OpenCheckpoint, rotary: Rotary | str | None, dtype: str | None, mesh: str
) -> tuple[Decoder, dict]:
    trained = checkpoint.config
    config = trained if rotary is None else variants.apply(trained, rotary)[1]
    layout = fit_layout(config, sharding.make_layout(mesh))
    weight_map, reader = checkpoint.weight_map(trained), checkpoint.reader
    check_shapes(weight_map, runs.abstract_params(Decoder(trained, layout)), reader)
    refuse_extra(weight_map, reader, checkpoint.ignored)
    if rotary is not None:
        weight_map = _changed_weight_map(config, checkpoint, rotary)
    decoder = Decoder(config, layout)
    return decoder, assemble(decoder, weight_map, reader, dtype, f"loading {checkpoint.name}")


def _changed_weight_map(
    config: DecoderConfig, checkpoint: OpenCheckpoint, rotary: Rotary | str
) -> WeightMap:
    """Where the arrays are for another encoding; refuses one that needs arrays of its own."""
    try:
        return checkpoint.weight_map(config)
    except UserError as error:
        raise UserError(
            f"rotary={rotary!r} needs arrays that this checkpoint does not have ({error}); choose"
            " one without arrays of its own",
            "rotary",
        ) from error
