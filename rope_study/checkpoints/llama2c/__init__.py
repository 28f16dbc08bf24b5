"""Model files of llama2.c.

Takes a model.bin (version 0); gives its decoder and its weight map.
file.py is the format, model.py the decoder that it describes.
"""

from rope_study.checkpoints.llama2c.model import open_checkpoint
