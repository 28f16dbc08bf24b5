"""llama2.c's model files as decoders: Llama with neighbouring dimensions as rotary pairs."""

import functools
import os
from pathlib import Path

import numpy as np

from rope_study.checkpoints.llama2c import file
from rope_study.checkpoints.weight_map import (
    Index,
    OpenCheckpoint,
    TensorSpec,
    make_weight_map,
)
from rope_study.decoder import DecoderConfig
from rope_study.files.paths import to_path

# Axes: D d_model, N query heads, K key heads, H head_dim, F mlp_hidden, V vocabulary.
TOP = {
    "embedding": TensorSpec("token_embedding", "vd", ("v", "d")),
    "final_norm": TensorSpec("rms_final", "d", ("d",)),
    "unembedding": TensorSpec("wcls", "vd", ("v", "d")),
}
LAYER = {
    "attention_norm": TensorSpec("rms_att", "d", ("d",), part=("i",)),
    "q": TensorSpec("wq", "dnh", ("nh", "d"), part=("i",), layout="interleaved"),
    "k": TensorSpec("wk", "dkh", ("kh", "d"), part=("i",), layout="interleaved"),
    "v": TensorSpec("wv", "dkh", ("kh", "d"), part=("i",)),
    "o": TensorSpec("wo", "nhd", ("d", "nh"), part=("i",)),
    "mlp_norm": TensorSpec("rms_ffn", "d", ("d",), part=("i",)),
    "gate": TensorSpec("w1", "df", ("f", "d"), part=("i",)),
    "down": TensorSpec("w2", "fd", ("d", "f"), part=("i",)),
    "up": TensorSpec("w3", "df", ("f", "d"), part=("i",)),
}


class _MappedArrays:
    """The file's arrays as a Reader."""

    def __init__(self, file: Path, arrays: dict[str, np.ndarray]):
        self._file, self._arrays = file, arrays
        self.names = sorted(arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self._arrays[name].dtype

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        return self._arrays[name][index]

    def where(self, name: str) -> Path:
        return self._file


def open_checkpoint(path: str | os.PathLike) -> OpenCheckpoint:
    """The model file at a path, such as stories260K.bin.

    Raises:
      UserError: not a file of llama2.c, or cut off.
    """
    path = to_path(path, "checkpoint")
    header, arrays = file.read(path)
    config = DecoderConfig(
        vocab_size=header.vocab_size,
        d_model=header.dim,
        layers=header.n_layers,
        heads=header.n_heads,
        kv_heads=header.n_kv_heads,
        head_dim=header.head_dim,
        mlp_hidden=header.hidden_dim,
        trained_length=header.seq_len,
        norm_epsilon=1e-5,
        norm_offset=0.0,
        activation="silu",
        scale_embedding=False,
        tied="wcls" not in arrays,
    )
    weight_map = functools.partial(make_weight_map, top=TOP, layer=LAYER)
    return OpenCheckpoint(path.name, config, weight_map, _MappedArrays(path, arrays))
