"""A DiverseEvol run: its config, its inputs, its folder on the disk, and training."""
