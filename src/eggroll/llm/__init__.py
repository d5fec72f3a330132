"""Language models: RWKV-7 in JAX, generation for a whole population, fine-tuning on rewards, GRPO beside it."""
