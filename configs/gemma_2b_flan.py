"""The paper's Table 2 on FlanV2: Gemma 2B from scratch with seven encodings, 42e9 tokens each.

On every host, with Gemma's tokenizer.model and FlanV2's 15,000,000 samples as JSON Lines:

    python -m rope_study.study --config=configs/gemma_2b_flan.py --config.data.path=flan.jsonl

Plan for 16 chips of v5e, compiled and not run on a TPU (results/plans.txt): 10.2 of 16 GiB a chip.
Where products reach 60 % of the peak an encoding takes 132 hours and $2,500, all seven $17,700. On
256 chips, with --config.train.accumulate=2, 8.2 hours for the same price; on 16 of v6e 28 hours
and $1,200. Others:

    python -m rope_study.plan --config=configs/gemma_2b_flan.py --topology=v4:2x2x4
"""

from rope_study.training import table2


def get_config():
    """The paper's run; what it does not give is in rope_study/training/table2.py."""
    config = table2.gemma_2b()
    config.workdir = "runs/gemma_2b_flan"
    config.data.path = "flan.jsonl"
    return config
