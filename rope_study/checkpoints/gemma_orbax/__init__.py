"""Official Gemma checkpoints for Flax (Kaggle), which are Orbax trees.

Takes a folder of Gemma 1, 2 or 3; gives its decoder and its weight map.
A released size is a row of gemma.RELEASED; the forms of the trees are in tree.py.
"""

from rope_study.checkpoints.gemma_orbax.gemma import decoder_config, infer_shapes, open_checkpoint
from rope_study.checkpoints.gemma_orbax.tree import OrbaxTree, is_orbax
