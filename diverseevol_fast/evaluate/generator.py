"""A causal language model that answers prompts in left-padded batches."""

from pathlib import Path
from typing import Any

import torch

from .._common.errors import InputError
from .._common.messages import shown
from ..data.templates import Template
from ..models.load import NO_LIMIT, check_vocabulary, load_causal_lm, load_tokenizer
from .answer_file import GeneratedAnswer
from .questions import Question


class Generator:
    """A model and its tokenizer. Of the model's own generation settings only the end tokens are used."""

    def __init__(self, folder: Path, template: Template, *, trust_remote_code: bool, **options):
        """Load both from a folder. template: the one that the model was trained with; options: load_causal_lm's.

        Raises:
            InputError: the folder holds no model, or no tokenizer.
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
        self.model.generation_config = self._settings()  # `generate` takes from it the settings that are not passed

    def prompt(self, question: Question, kind: str) -> str:
        """The text that the answer follows.

        kind: "training", the text before the response in the run's template; "upstream", the same after a space, with
        which the public implementation generates; "chat", the question in the tokenizer's chat template.

        Raises:
            InputError: the chat template refuses the question.
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
            InputError: a prompt has no token, or one that is not in the model's vocabulary.
        """
        prompts, chat = [self.prompt(question, kind) for question in questions], kind == "chat"
        encoded = self.tokenizer(prompts, add_special_tokens=not chat, verbose=False)["input_ids"]
        if not chat:  # some tokenizers add an end token to every text, but here the answer follows
            encoded = [ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids for ids in encoded]
        for question, ids in zip(questions, encoded, strict=True):
            if not ids:
                raise InputError(f"question {shown(question.id)}: the tokenizer makes no token of its prompt")
        check_vocabulary(self.model, max(max(ids) for ids in encoded))
        return encoded

    def answers(self, prompts: list[list[int]], most: int, choose: "NextToken") -> list[GeneratedAnswer]:
        """An answer of at most `most` tokens to each prompt."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.ends[0])
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, longest - len(prompt) :] = 1
        written = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),  # transformers derives positions from it: 0 is a prompt's first
            generation_config=self._settings(
                max_new_tokens=most, do_sample=False, eos_token_id=self.ends, pad_token_id=self.ends[0]
            ),
            logits_processor=[choose],
        )
        return [self._answer(row) for row in written[:, longest:].tolist()]

    def _answer(self, ids: list[int]) -> GeneratedAnswer:
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return GeneratedAnswer(str(text).strip(), len(ids) if end is None else end + 1, end is not None)


class NextToken:
    """A logits processor that draws the tokens of one batch: greedy search then takes each token drawn.

    transformers' own sampling draws for the whole batch from one stream of random numbers, so a question's answer would
    depend on the other questions in its batch. Here every question has its own random numbers.
    """

    def __init__(self, uniform: torch.Tensor | None, temperature: float, top_p: float):
        """uniform: random numbers in [0, 1), float64 [B, T], one for each token; None: take the likeliest tokens."""
        self.uniform, self.temperature, self.top_p = uniform, temperature, top_p
        self.step = 0  # tokens drawn for each question
        self.finite = torch.tensor(True)  # bool [B] from the first token on: whether all highest logits were finite

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` [B, V] unchanged, or -inf everywhere but at the token drawn."""
        self.finite = scores.amax(dim=-1).isfinite() & self.finite.to(scores.device)
        if self.uniform is None:
            return scores
        number = self.uniform[:, self.step].to(scores.device)
        self.step += 1
        token = draw(scores, number, self.temperature, self.top_p)
        return torch.full_like(scores, -torch.inf).scatter(-1, token[:, None], 0.0)


def draw(scores: torch.Tensor, number: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """A token of softmax(scores / temperature) for each row, by inversion of its distribution function: int64 [B].

    Args:
        scores: [B, V].
        number: float64 [B], uniform in [0, 1).
        temperature: above 0.
        top_p: below 1, only the fewest likeliest tokens whose probabilities sum to at least top_p can be drawn; of
            equals the lowest token comes first (nucleus sampling, arXiv 1904.09751, section 3.1).
    """
    shifted = (scores - scores.amax(dim=-1, keepdim=True)).double() / temperature
    probability = shifted.softmax(dim=-1)
    if top_p < 1:
        ordered, order = probability.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p  # likelier tokens sum to top_p
        probability = probability.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    mass = probability.cumsum(dim=-1)
    token = torch.searchsorted(mass, number[:, None] * mass[:, -1:], right=True).squeeze(-1)
    return token.clamp(max=scores.shape[-1] - 1)  # NaN gives V, which is no token; generate.py raises the error
