"""The quick start: a generated data set and a small Llama, made from seeds without a download."""
