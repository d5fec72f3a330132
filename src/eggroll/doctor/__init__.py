"""`eggroll doctor`: what this machine has, whether it computes what it should, and what fits."""
