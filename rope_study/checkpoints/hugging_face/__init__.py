"""Hugging Face folders: config.json with safetensors in, and out again.

Takes a folder of Gemma 1 to 4, Llama, Mistral, Qwen 3 or SmolLM3; gives its decoder and its weight
map.
To add a family: a row in families.py, and in folder.py and config.py what is new about it.
"""

from rope_study.checkpoints.hugging_face.export import export
from rope_study.checkpoints.hugging_face.folder import open_checkpoint
