"""Which rows join the pool: one file for each strategy."""
