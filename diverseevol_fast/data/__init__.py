"""A data set: rows, their schemas, the texts and tokens that a model sees, and rows as other trainers read them."""
