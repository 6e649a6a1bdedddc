"""Texts as the public DiverseEvol makes them for its models in eval.py, from its templates/alpaca.json."""

TEMPLATE = {
    "prompt_input": (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    ),
    "prompt_no_input": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    ),
}


def public_text(instruction, input="", output=""):  # noqa: A002 (a row's keys)
    """What it generates after; with an output, what it measures diversity of."""
    text = TEMPLATE["prompt_input" if input else "prompt_no_input"].format(instruction=instruction, input=input)
    return " " + (text + output).strip()
