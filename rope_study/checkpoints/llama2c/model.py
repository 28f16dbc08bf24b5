"""llama2.c's model files as decoders: Llama with neighbouring dimensions as rotary pairs."""

import functools
import os
from pathlib import Path

import numpy as np

from rope_study.checkpoints.llama2c import file
from rope_study.checkpoints.weight_map import Released, Stored, locate
from rope_study.decoder import DecoderConfig

# Axes: D width, N query heads, K key heads, H head_dim, F mlp_hidden, V vocabulary.
TOP = {
    "embedding": Stored("token_embedding", "vd", ("v", "d")),
    "final_norm": Stored("rms_final", "d", ("d",)),
    "unembedding": Stored("wcls", "vd", ("v", "d")),
}
LAYER = {
    "attention_norm": Stored("rms_att", "d", ("d",), part=("i",)),
    "q": Stored("wq", "dnh", ("nh", "d"), part=("i",), layout="interleaved"),
    "k": Stored("wk", "dkh", ("kh", "d"), part=("i",), layout="interleaved"),
    "v": Stored("wv", "dkh", ("kh", "d"), part=("i",)),
    "o": Stored("wo", "nhd", ("d", "nh"), part=("i",)),
    "mlp_norm": Stored("rms_ffn", "d", ("d",), part=("i",)),
    "gate": Stored("w1", "df", ("f", "d"), part=("i",)),
    "down": Stored("w2", "fd", ("d", "f"), part=("i",)),
    "up": Stored("w3", "df", ("f", "d"), part=("i",)),
}


class _Arrays:
    """The file's arrays as a Reader."""

    def __init__(self, file: Path, arrays: dict[str, np.ndarray]):
        self._file, self._arrays = file, arrays
        self.names = sorted(arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self._arrays[name].dtype

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def where(self, name: str) -> Path:
        return self._file


def open_checkpoint(path: str | os.PathLike) -> Released:
    """The model file at a path, such as stories260K.bin.

    Raises:
      UserError: not a file of llama2.c, or cut off.
    """
    path = Path(path).expanduser()
    header, arrays = file.read(path)
    config = DecoderConfig(
        vocab_size=header.vocab_size,
        d_model=header.dim,
        layers=header.n_layers,
        heads=header.n_heads,
        kv_heads=header.n_kv_heads,
        head_dim=header.head_dim,
        mlp_hidden=header.hidden_dim,
        norm_epsilon=1e-5,
        norm_offset=0.0,
        activation="silu",
        scale_embedding=False,
        tied="wcls" not in arrays,
    )
    find = functools.partial(locate, top=TOP, of_layer=LAYER)
    return Released(path.name, config, find, _Arrays(path, arrays))
