"""The paper's Table 2 on Wikipedia: Gemma 2B from scratch with seven encodings, 42e9 tokens each.

On every host, with Gemma's tokenizer.model and Wikipedia as JSON Lines:

    python -m rope_study.study --config=configs/gemma_2b_wiki.py --config.data.path=wiki.jsonl

Plan: PLAN
"""

from rope_study.training import table2


def get_config():
    """The paper's run; what it does not give is in rope_study/training/table2.py."""
    config = table2.gemma_2b()
    config.workdir = "runs/gemma_2b_wiki"
    config.data.path = "wiki.jsonl"
    return config
