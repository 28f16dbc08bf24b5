"""RoPE, NoPE and 0.75-RoPE on text that ships with Python: minutes on two CPU cores.

python -m rope_study.study --config=configs/quickstart.py
"""

from rope_study.training import quickstart


def get_config():
    """Its settings stand in the package, as notebooks train the same models."""
    return quickstart.config()
