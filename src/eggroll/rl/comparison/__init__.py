"""`eggroll report` of reinforcement learning: algorithms compared on each environment, as in the paper's figures."""

from eggroll.rl.comparison.page import compared as compared
