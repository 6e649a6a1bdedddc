"""The loss on rows that are in no pool, and its bootstrap interval over rows."""

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from .._common import distributed
from .._common.errors import RunError
from .._common.progress import Progress
from .._common.statistics import ratio_interval
from ..data.batches import pad, token_budget_batches
from ..data.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 1024  # padding included; few, because logits take far more memory than hidden states
RESAMPLES = 2000


def evaluate_loss(
    model: "PreTrainedModel", tokens: Tokens, indices: np.ndarray, name: str
) -> dict[str, float | list[float]]:
    """The mean negative log-likelihood, in nats, of the response tokens of the rows at `indices`.

    At least one of the rows has a response token. Returns <name>_loss; <name>_interval, which holds 95 % of the losses
    of resampled rows (seeded percentile bootstrap; it does not cover other seeds of the run); <name>_seconds; an empty
    dictionary for no rows.

    Raises:
        RunError: the loss is not finite.
    """
    if not len(indices):
        return {}
    began, label = time.perf_counter(), name.replace("_", "-")
    sums, counts = response_losses(model, tokens, indices, label)
    loss = sums.sum() / counts.sum()
    if not np.isfinite(loss):
        raise RunError(f"the {label} loss is {loss}: training diverged; lower train_args.learning_rate")
    scored = counts > 0
    return {
        f"{name}_loss": float(loss),
        f"{name}_interval": list(ratio_interval(sums[scored], counts[scored], RESAMPLES, seed=0) or ()),
        f"{name}_seconds": time.perf_counter() - began,
    }


@torch.inference_mode()
def response_losses(
    model: "PreTrainedModel", tokens: Tokens, indices: np.ndarray, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """For each row the summed negative log-likelihood of its response tokens, and their number: [len(indices)] float64.

    The job's processes share the rows.
    """
    model.eval()
    mine = np.arange(distributed.rank(), len(indices), distributed.world())  # into `indices`
    totals = torch.zeros((2, len(indices)), dtype=torch.float64)  # losses, counts
    with Progress(f"{label} loss", len(mine), "row") as bar:
        for batch in token_budget_batches(tokens.lengths()[indices[mine]], BATCH_TOKENS):
            ids, mask, is_response = (part.to(model.device) for part in pad(tokens, indices[mine[batch]]))
            logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]  # [B, T - 1, V]
            is_scored = is_response[:, 1:]  # [B, T - 1]
            losses = torch.zeros(is_scored.shape, dtype=torch.float64, device=is_scored.device)
            losses[is_scored] = torch.nn.functional.cross_entropy(
                logits[is_scored].float(), ids[:, 1:][is_scored], reduction="none"
            ).to(torch.float64)
            totals[:, mine[batch]] = torch.stack([losses.sum(dim=1), is_scored.sum(dim=1).to(torch.float64)]).cpu()
            bar.update(len(batch))
    sums, counts = distributed.total(totals).numpy()
    return sums, counts
