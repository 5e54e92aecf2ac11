"""The remote worker: a daemon that reaches the edge, git and the model endpoint, and nothing else."""
