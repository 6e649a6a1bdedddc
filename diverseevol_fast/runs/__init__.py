"""A DiverseEvol run: its config, its inputs, what it keeps on the disk, and training."""
