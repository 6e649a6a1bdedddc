"""A causal language model that answers prompts in left-padded batches."""

from pathlib import Path
from typing import Any

import torch

from .._common.errors import InputError
from .._common.messages import shown
from ..data.templates import Template
from ..models.load import NO_LIMIT, check_vocabulary, load_causal_lm, load_tokenizer
from .answer_file import Generated
from .questions import Question


class Generator:
    """A model and its tokenizer. Of the model's own settings for generation nothing holds but its end tokens."""

    def __init__(self, folder: Path, template: Template, *, trust_remote_code: bool, **options):
        """Load both from a folder; template: what the model was trained on; options: as load_causal_lm's.

        Raises:
            InputError: not a model, or no tokenizer.
        """
        self.template = template
        self.tokenizer = load_tokenizer(folder, trust_remote_code)
        model: Any = load_causal_lm(folder, trust_remote_code=trust_remote_code, **options)
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model  # adapters stay in it
        self.positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or NO_LIMIT
        self._settings = type(self.model.generation_config)
        own = self.model.generation_config.eos_token_id
        ends: list[Any] = [self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
        self.ends = sorted({end for end in ends if end is not None})
        self.model.generation_config = self._settings()  # what is not given to generate is taken from it

    def prompt(self, question: Question, kind: str) -> str:
        """The text that the answer follows.

        kind: "training", what the run's template has before a response; "upstream", what the public
        implementation generates with (the same after a space); "chat", the tokenizer's chat template.

        Raises:
            InputError: the chat template refuses it.
        """
        if kind == "chat":
            return self._chat_prompt(question)
        text = self.template.prompt(question.text, question.input, self.tokenizer)
        return f" {text}" if kind == "upstream" else text

    def _chat_prompt(self, question: Question) -> str:
        from jinja2 import TemplateError

        turn = {"role": "user", "content": "\n\n".join(part for part in (question.text, question.input) if part)}
        try:
            return str(self.tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            refused = f"the tokenizer's chat template refuses it: {shown(error, 120)}"
            raise InputError(f"question {shown(question.id)}: {refused}") from error

    def token_ids(self, questions: list[Question], kind: str) -> list[list[int]]:
        """The token ids of each question's prompt.

        Raises:
            InputError: a prompt without a token, or with one that the model does not have.
        """
        prompts, chat = [self.prompt(question, kind) for question in questions], kind == "chat"
        found = self.tokenizer(prompts, add_special_tokens=not chat, verbose=False)["input_ids"]
        if not chat:  # a chat template writes its own; some tokenizers end every text, and the answer follows here
            found = [ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids for ids in found]
        for question, ids in zip(questions, found, strict=True):
            if not ids:
                raise InputError(f"question {shown(question.id)}: the tokenizer makes no token of its prompt")
        check_vocabulary(self.model, max(max(ids) for ids in found))
        return found

    def answers(self, prompts: list[list[int]], most: int, choose: "NextToken") -> list[Generated]:
        """An answer of at most `most` tokens to each prompt."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.ends[0])
        mask = torch.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, longest - len(prompt) :] = torch.tensor(prompt)
            mask[place, longest - len(prompt) :] = 1
        written = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),  # positions follow from it: each prompt's begin at 0
            generation_config=self._settings(
                max_new_tokens=most, do_sample=False, eos_token_id=self.ends, pad_token_id=self.ends[0]
            ),
            logits_processor=[choose],
        )
        return [self._answer(row) for row in written[:, longest:].tolist()]

    def _answer(self, ids: list[int]) -> Generated:
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generated(str(text).strip(), len(ids) if end is None else end + 1, end is not None)


class NextToken:
    """A logits processor for one batch, by which greedy search takes the token that is drawn.

    Sampling as transformers does it draws for the whole batch from one stream of random numbers: a question's answer
    would depend on the questions beside it. Here every question has its own numbers.
    """

    def __init__(self, numbers: torch.Tensor | None, temperature: float, top_p: float):
        """numbers: float64 [B, T] in [0, 1), one a token, of which the likeliest is taken when they are None."""
        self.numbers, self.temperature, self.top_p = numbers, temperature, top_p
        self.written = 0  # tokens so far
        self.finite = torch.tensor(True)  # bool [B] from the first token on: whether the highest logits were

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [B, V] as they are, or -inf everywhere but at the token drawn."""
        self.finite = scores.amax(dim=-1).isfinite() & self.finite.to(scores.device)
        if self.numbers is None:
            return scores
        number = self.numbers[:, self.written].to(scores.device)
        self.written += 1
        token = draw(scores, number, self.temperature, self.top_p)
        return torch.full_like(scores, -torch.inf).scatter(-1, token[:, None], 0.0)


def draw(scores: torch.Tensor, number: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """A token of softmax(scores / temperature) for each row, by inversion of its distribution function: int64 [B].

    Args:
        scores: [B, V].
        number: float64 [B], uniform in [0, 1).
        temperature: above 0.
        top_p: below 1, only the likeliest tokens that together have at least this probability can be drawn, the lowest
            of equals first (nucleus sampling, arXiv 1904.09751, section 3.1).
    """
    shifted = (scores - scores.amax(dim=-1, keepdim=True)).double() / temperature
    probability = shifted.softmax(dim=-1)
    if top_p < 1:
        ordered, order = probability.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p  # the likelier ones have it already
        probability = probability.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    mass = probability.cumsum(dim=-1)
    place = torch.searchsorted(mass, number[:, None] * mass[:, -1:], right=True).squeeze(-1)
    return place.clamp(max=scores.shape[-1] - 1)  # of NaN, which is an error once the batch is through
