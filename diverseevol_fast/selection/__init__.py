"""Exact K-Center greedy selection: block-exact farthest-first traversal."""
