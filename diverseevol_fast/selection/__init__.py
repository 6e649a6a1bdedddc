"""Selection: which rows to add to the pool, given their embeddings."""
