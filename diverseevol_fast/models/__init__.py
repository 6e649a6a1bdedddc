"""Models: loading them, how many tokens fit into a batch, how fast the machine multiplies."""
