"""Reinforcement learning: environments, policies and the jobs `eggroll rl` and `eggroll marl`."""
