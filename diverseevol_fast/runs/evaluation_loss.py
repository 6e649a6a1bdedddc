"""The loss on rows that are in no pool, and the interval that another draw of such rows may put it in."""

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

BATCH_TOKENS = 1024  # padding included: logits take far more room than states
RESAMPLES = 2000


def evaluate_loss(
    model: "PreTrainedModel", tokens: Tokens, rows: np.ndarray, name: str
) -> dict[str, float | list[float]]:
    """The loss on `rows`, of which one has a response token: mean negative log-likelihood, in nats, of such tokens.

    Returns <name>_loss; <name>_interval, in which 95 % of the losses of resampled rows are (percentile bootstrap over
    rows, seeded: it says nothing of another seed of the run); <name>_seconds. Nothing for no rows.

    Raises:
        RunError: the loss is not finite.
    """
    if not len(rows):
        return {}
    began, label = time.perf_counter(), name.replace("_", "-")
    sums, counts = response_losses(model, tokens, rows, label)
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
    model: "PreTrainedModel", tokens: Tokens, rows: np.ndarray, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of each row, the summed negative log-likelihood of its response tokens, and their number: [len(rows)] float64.

    The rows are shared out among the job's processes.
    """
    model.eval()
    mine = np.arange(distributed.rank(), len(rows), distributed.world())
    found = torch.zeros((2, len(rows)), dtype=torch.float64)
    with Progress(f"{label} loss", len(mine), "row") as bar:
        for batch in token_budget_batches(tokens.lengths()[rows[mine]], BATCH_TOKENS):
            ids, mask, is_response = (part.to(model.device) for part in pad(tokens, rows[mine[batch]]))
            logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]  # [B, T - 1, V]
            wanted = is_response[:, 1:]  # [B, T - 1]
            losses = torch.zeros(wanted.shape, dtype=torch.float64, device=wanted.device)
            losses[wanted] = torch.nn.functional.cross_entropy(
                logits[wanted].float(), ids[:, 1:][wanted], reduction="none"
            ).to(torch.float64)
            found[:, mine[batch]] = torch.stack([losses.sum(dim=1), wanted.sum(dim=1).to(torch.float64)]).cpu()
            bar.update(len(batch))
    sums, counts = distributed.total(found).numpy()
    return sums, counts
