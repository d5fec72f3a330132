"""Baselines that follow a gradient: PPO and, for several agents, IPPO."""
