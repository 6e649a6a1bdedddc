"""Embeddings of rows: batches of tokens through a model, pooled, into memory or a file that survives a crash."""
