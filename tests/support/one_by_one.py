"""Embeddings of one row at a time, the plain way."""

import numpy as np
import torch


def one_by_one(model, tokens):
    """As the public implementation does, in float64: every row alone, mean of the last hidden states."""
    model = model.double().eval()
    rows = []
    for row in range(len(tokens)):
        ids = torch.from_numpy(tokens.row(row)[0].astype(np.int64))[None]
        with torch.no_grad():
            out = model(input_ids=ids, output_hidden_states=True)
        rows.append(out.hidden_states[-1][0].mean(0))
    return torch.stack(rows).numpy()


class StopHereError(Exception):
    """Stands for a crash."""
