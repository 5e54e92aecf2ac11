"""The remote worker: a daemon that reaches the edge, git and the model endpoint, nothing else."""
