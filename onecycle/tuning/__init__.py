"""Searches that train: for a learning rate, a weight decay, a batch size and whatever else."""
