"""Official Gemma checkpoints for Flax, as Orbax trees."""
