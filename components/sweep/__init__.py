"""Hyperparameter sweeps without a cluster: spaces, what to try next, who is stopped, and one trial from start to end."""
