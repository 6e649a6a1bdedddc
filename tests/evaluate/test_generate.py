"""Answers of a run's models: batches, prompts, end tokens, draws, and what is refused."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.generating import QUESTIONS, answers, make_run, metrics, read_lines, talkative, write_lines
from support.public_text import public_text
from support.runs import CHAT
from tokenizers.processors import TemplateProcessing

from diverseevol_fast.cli.main import main
from diverseevol_fast.data.templates import PROMPT, PROMPT_WITH_INPUT, Template
from diverseevol_fast.evaluate.generator import Generator, NextToken, draw
from diverseevol_fast.evaluate.questions import read_questions
from diverseevol_fast.models.load import load_causal_lm, load_tokenizer

PROMPTS = [
    PROMPT_WITH_INPUT.format(instruction="Name three colours.", input="red, green, blue"),
    *(PROMPT.format(instruction=record.get("question") or record["instruction"]) for record in QUESTIONS[1:]),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model, rows):
    """A finished run of rounds 0 and 1."""
    folder = tmp_path_factory.mktemp("made")
    return make_run(folder, rows, talkative(folder / "base", tiny_model))


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the run that a test may change, and its first model's folder."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy", tmp_path / "copy/output/rd_0"


@pytest.fixture
def ask(tmp_path):
    """Run the command; returns the folder of its answers. `options` override the defaults."""

    def ask(run, *options, questions=QUESTIONS, output="answers", status=0):
        file = write_lines(tmp_path / "mine_test_set.jsonl", questions)
        command = ["generate", run, "--questions", file, "--max-new-tokens", 12, "--output", tmp_path / output]
        assert main([str(word) for word in [*command, *options]]) == status
        return tmp_path / output / "mine_test" / run.name

    return ask


def by_hand(model, tokenizer, prompts, count, special=True):
    """Greedy answers to one prompt at a time, one forward pass of the whole text for each token."""
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=special)["input_ids"]
        begin = len(ids)
        while len(ids) - begin < count and ids[-1] != tokenizer.eos_token_id:
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        texts.append(tokenizer.decode(ids[begin:], skip_special_tokens=True).strip())
    return texts


def alone(folder, prompts=PROMPTS, count=12, **options):
    return by_hand(load_causal_lm(folder).eval(), load_tokenizer(folder), prompts, count, **options)


def say(folder, tokens):
    """Make a saved model continue with these tokens: each token determines the next one."""
    model, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert len({*ids, tokenizer.unk_token_id}) == len(ids) + 1
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        for weight in (embedding, head):
            weight.zero_()
        embedding[:, 0] = 1.0
        head[ids[0], 0] = 1.0
        for dimension, (one, following) in enumerate(pairwise(ids), start=1):
            embedding[one] = 0.0
            embedding[one, dimension] = head[following, dimension] = 1.0
    model.save_pretrained(folder)


def test_answers_are_those_of_one_question_at_a_time(made, ask, capsys):
    folder = ask(made)
    out, err = capsys.readouterr()
    for r in (0, 1):
        written = read_lines(folder / f"rd_{r}.jsonl")
        assert [{key: record[key] for key in record if key != "answer"} for record in written] == QUESTIONS
        assert answers(folder, r) == alone(made / f"output/rd_{r}")
        counted = metrics(folder, r)
        assert counted["questions"] == 5
        assert counted["empty"] == [record["id"] for record in written if record["answer"] == ""]
        facts = f"5 answers, {len(counted['empty'])} empty, {len(counted['cut'])} cut for length"
        assert f"{folder}/rd_{r}.jsonl: {facts}" in out
        assert f"round {r}: mine_test: {facts}; {counted['tokens']} tokens in " in err
    assert len({*answers(folder, 0), *answers(folder, 1)}) > 3
    assert err.count("question a of mine_test, as the model sees it:\n" + PROMPTS[0]) == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "rd_0.jsonl",
        "rd_0.jsonl.json",
        "rd_1.jsonl",
        "rd_1.jsonl.json",
    ]


@pytest.mark.parametrize("temperature", [0, 1])
def test_batches_do_not_change_answers(made, ask, temperature):
    options = ["--temperature", temperature, "--rounds", 1]
    together = answers(ask(made, *options), 1)
    assert len(set(together)) > 2
    for tokens in (1, 300):
        assert answers(ask(made, *options, "--max-tokens-per-batch", tokens, output=f"{tokens}"), 1) == together


def test_out_of_memory_halves_a_batch_and_changes_nothing(made, ask, monkeypatch, capsys):
    """Simulates a GPU without memory for more than two prompts."""
    options = ["--temperature", 1, "--rounds", 1]
    together, answer, sizes = answers(ask(made, *options), 1), Generator.answers, []

    def small(self, prompts, *args):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(self, prompts, *args)

    monkeypatch.setattr(Generator, "answers", small)
    assert answers(ask(made, *options, output="small"), 1) == together
    assert sizes[0] == 5
    assert sum(size for size in sizes if size <= 2) == 5
    assert "out of memory with a batch of" in capsys.readouterr().err


@pytest.mark.parametrize(("tokens", "text"), [(["x", "</s>"], "x"), (["</s>"], ""), (["x", "Ġ", "y"], "x y")])
def test_an_answer_ends_at_the_end_token(copy, ask, tokens, text, capsys):
    run, model = copy
    say(model, tokens)
    folder = ask(run, "--rounds", 0, "--max-new-tokens", 3)
    assert answers(folder) == [text] * 5
    ids, counted = ["a", "b", 7, "d", "e"], metrics(folder)
    assert counted["tokens"] == 5 * len(tokens)
    assert counted["empty"] == ([] if text else ids)
    assert counted["cut"] == ([] if tokens[-1] == "</s>" else ids)
    assert f"5 answers, {len(counted['empty'])} empty, {len(counted['cut'])} cut for length" in capsys.readouterr().out


def test_every_end_token_of_the_model_ends_an_answer(copy, ask):
    run, model = copy
    say(model, ["x", "y", "z"])
    y = load_tokenizer(model).convert_tokens_to_ids("y")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [y, 2]}))
    assert answers(ask(run, "--rounds", 0)) == ["x"] * 5


def test_the_models_own_generation_settings_change_nothing(copy, ask):
    run, model = copy
    (model / "generation_config.json").write_text(
        json.dumps(
            {
                "do_sample": True,
                "temperature": 9.0,
                "top_k": 3,
                "max_length": 4,
                "min_new_tokens": 3,
                "eos_token_id": 2,
                "repetition_penalty": 5.0,
                "no_repeat_ngram_size": 1,
                "num_beams": 3,
                "suppress_tokens": list(range(3, 200)),
                "num_return_sequences": 2,
                "return_dict_in_generate": True,
            }
        )
    )
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"use_cache": False}))
    assert answers(ask(run, "--rounds", 0)) == alone(model)


def test_a_tokenizer_that_ends_every_text(copy, ask):
    run, model = copy
    plain, tokenizer = alone(model), load_tokenizer(model)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.save_pretrained(model)
    assert load_tokenizer(model)("a")["input_ids"][-1] == tokenizer.eos_token_id == 2
    assert answers(ask(run, "--rounds", 0)) == plain


def test_upstream_prompt(made, ask, capsys):
    folder = ask(made, "--upstream-prompt", "--rounds", 1)
    assert answers(folder, 1) == alone(made / "output/rd_1", [f" {prompt}" for prompt in PROMPTS])
    assert "as the model sees it:\n Below is an instruction" in capsys.readouterr().err


def test_a_run_is_asked_by_the_template_it_was_trained_with(tmp_path, tiny_model, rows, ask, capsys):
    own = tmp_path / "own.txt"
    own.write_text("Q: {instruction} ({input})\nA: {output}")
    run = make_run(tmp_path, rows, tiny_model, n_round=0, template=str(own))
    prompts = [f"Q: {r.get('question') or r['instruction']} ({r.get('input', '')})\nA: " for r in QUESTIONS]
    prompts[0] = "Q: Name three colours. (red, green, blue)\nA: "
    assert answers(ask(run)) == alone(run / "output/rd_0", prompts)
    ask(run, "--upstream-prompt", output="upstream", status=2)
    assert "--upstream-prompt: is Alpaca's" in capsys.readouterr().err
    own.write_text("Q: {instruction}\nA: {output}")
    ask(run, output="other", status=2)
    assert "own.txt: is not what" in capsys.readouterr().err


def test_the_upstream_prompt_is_that_of_the_public_implementation(made, shared_data):
    model = Generator(made / "output/rd_0", Template("alpaca"), trust_remote_code=False)
    questions = [
        question
        for name in ("vicuna", "koala", "wizardlm")
        for question in read_questions(shared_data / "benchmarks" / f"{name}_test_set.jsonl")
    ]
    assert len(questions) == 478
    assert [model.prompt(question, "upstream") for question in questions] == [
        public_text(question.text) for question in questions
    ]


def test_a_run_on_conversations_is_asked_through_its_chat_template(tmp_path, tiny_model, rows, ask, capsys):
    model = tmp_path / "chat-model"
    shutil.copytree(tiny_model, model)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    turns = [
        {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]}
        for row in rows
    ]
    run = make_run(tmp_path, turns, model, n_round=0)
    prompts = [f"<user>{record.get('question') or record['instruction']}<assistant>" for record in QUESTIONS]
    prompts[0] = "<user>Name three colours.\n\nred, green, blue<assistant>"
    assert answers(ask(run)) == alone(run / "output/rd_0", prompts, special=False)
    assert f"as the model sees it:\n{prompts[0]}" in capsys.readouterr().err
    ask(run, "--upstream-prompt", output="upstream", status=2)
    assert "--upstream-prompt" in capsys.readouterr().err
    (run / "output/rd_0/chat_template.jinja").write_text("{{ raise_exception('not you') }}")
    ask(run, output="refused", status=2)
    assert "question a: the tokenizer's chat template refuses it: not you" in capsys.readouterr().err


def test_lora(tmp_path, tiny_model, rows, ask):
    pytest.importorskip("peft")
    lora = {"r": 4, "lora_alpha": 64, "lora_dropout": 0.5, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    run = make_run(tmp_path, rows, tiny_model, n_round=0, peft=lora)
    model = run / "output/rd_0"
    folder = ask(run)
    adapted = load_causal_lm(model, base=tiny_model).eval()
    assert answers(folder) == by_hand(adapted, load_tokenizer(model), PROMPTS, 12)
    assert answers(folder) != alone(tiny_model)
    assert "base_model_sha256" in json.loads((folder / "rd_0.jsonl.json").read_text())["provenance"]


def test_questions_that_leave_little_room(copy, ask, capsys):
    """A model with learned positions has none beyond the last."""
    from transformers import GPT2Config, GPT2LMHeadModel

    run, model = copy
    tokenizer = load_tokenizer(model)
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    positions = max(lengths) + 2
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=32,
        n_layer=2,
        n_head=2,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
    )
    (model / "model.safetensors").unlink()
    GPT2LMHeadModel(config).save_pretrained(model)
    folder = ask(run, "--rounds", 0)
    expected = [alone(model, [prompt], min(12, positions - n))[0] for prompt, n in zip(PROMPTS, lengths, strict=True)]
    assert answers(folder) == expected
    assert "1 questions leave less than 12 tokens for the answer, question b leaves 2" in capsys.readouterr().err
    long = {"question": QUESTIONS[1]["question"] + " Really?", "id": "long"}
    length = len(tokenizer(PROMPT.format(instruction=long["question"]))["input_ids"])
    assert length > positions
    refused = ask(run, "--rounds", 0, questions=[*QUESTIONS, long], output="refused", status=2)
    assert (
        f"mine_test, question long: its prompt has {length} tokens, and the model takes {positions} with the answer"
        in capsys.readouterr().err
    )
    assert not refused.exists()


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_diverged_model(copy, ask, temperature, capsys):
    run, folder = copy
    model = load_causal_lm(folder)
    with torch.no_grad():
        model.lm_head.weight[3, 5] = torch.nan
    model.save_pretrained(folder)
    written = ask(run, "--temperature", temperature, status=1)
    assert "round 0: the model's logits are not finite for question b of mine_test" in capsys.readouterr().err
    assert len(read_lines(written / "rd_0.jsonl.partial")) == 1  # the header alone
    assert not (written / "rd_0.jsonl").exists()


def test_other_weights_dtype(made, ask):
    folder = ask(made, "--dtype", "bfloat16", "--rounds", 0)
    assert len(answers(folder)) == 5
    assert json.loads((folder / "rd_0.jsonl.json").read_text())["provenance"]["dtype"] == "bfloat16"


def test_draws_are_seeded_by_question(made, ask):
    def drawn(name, *options, questions=QUESTIONS):
        folder = ask(made, "--temperature", 1.2, *options, output=name, questions=questions)
        return [answers(folder, r) for r in (0, 1)]

    first = drawn("first")
    assert drawn("again") == first
    assert drawn("fewer", questions=QUESTIONS[3:]) == [one[3:] for one in first]
    assert drawn("seed", "--seed", 1) != first
    assert drawn("likeliest", "--top-p", 1e-6) == [alone(made / f"output/rd_{r}") for r in (0, 1)]
    twins = drawn("twins", questions=[{"question": "Why?", "id": number} for number in range(4)])
    assert len(set(twins[0])) > 1


def test_draw_inverts_the_distribution_function():
    scores = torch.tensor([[0.5, -torch.inf, 2.0, 2.0, -1.0]])
    probability = torch.softmax(scores[0].double() / 0.7, dim=0)
    uniform = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    tokens = draw(scores.expand(len(uniform), -1), uniform, 0.7, 1.0)
    shares = torch.bincount(tokens, minlength=5) / len(uniform)
    torch.testing.assert_close(shares, probability.float(), atol=2e-4, rtol=0)
    assert tokens.tolist() == sorted(tokens.tolist())
    last = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert draw(scores, last, 0.7, 1.0).item() == 4
    for temperature in (1e-320, 1e-30):
        assert set(draw(scores.expand(len(uniform), -1), uniform, temperature, 1.0).tolist()) == {2, 3}


@pytest.mark.parametrize(
    ("top_p", "possible"),
    [(0.5, {3}), (0.50001, {3, 1}), (0.7, {3, 1}), (0.75, {3, 1}), (0.76, {3, 1, 0}), (1e-9, {3}), (1.0, {0, 1, 2, 3})],
)
def test_draw_from_the_nucleus(top_p, possible):
    """The probabilities are 1/8, 1/4, 1/8, 1/2; of the two eighths the lower token comes first."""
    scores = torch.tensor([[0.125, 0.25, 0.125, 0.5]]).log().expand(2000, -1)
    uniform = torch.from_numpy(np.random.default_rng(0).random(2000))
    assert set(draw(scores, uniform, 1.0, top_p).tolist()) == possible


def test_every_token_has_its_own_number():
    scores = torch.tensor([[0.0, 0.0, -torch.inf, 0.0]]).expand(2, -1)
    choose = NextToken(torch.tensor([[0.0, 0.5, 0.99], [0.99, 0.0, 0.5]], dtype=torch.float64), 1.0, 1.0)
    written = torch.zeros(2, 0, dtype=torch.int64)
    for _ in range(3):
        chosen = choose(written, scores)
        assert chosen.isfinite().sum(dim=-1).tolist() == [1, 1]
        written = torch.cat([written, chosen.argmax(dim=-1, keepdim=True)], dim=-1)
    assert written.tolist() == [[0, 1, 3], [3, 0, 1]]


def test_next_token_sees_what_is_not_finite():
    choose = NextToken(None, 0.0, 1.0)
    scores = torch.zeros(4, 3)
    choose(torch.zeros(4, 2, dtype=torch.int64), scores)
    assert choose.finite.tolist() == [True] * 4
    scores[1, 0], scores[2, 0], scores[3, 0] = torch.nan, torch.inf, -torch.inf
    choose(torch.zeros(4, 3, dtype=torch.int64), scores)
    choose(torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 3))
    assert choose.finite.tolist() == [True, False, False, True]


def test_the_three_benchmarks(made, shared_data, tmp_path, monkeypatch):
    """A few questions of each benchmark, in the public layout."""
    files = []
    for name in ("vicuna", "koala", "wizardlm"):
        lines = (shared_data / "benchmarks" / f"{name}_test_set.jsonl").read_text(encoding="utf-8").split("\n")
        files.append(tmp_path / f"{name}_test_set.jsonl")
        files[-1].write_text("\n".join(sorted(lines[:-1], key=len)[:3]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["generate", str(made), "--max-new-tokens", "4", "--questions", *map(str, files)]) == 0
    for name, file in zip(("vicuna", "koala", "wizardlm"), files, strict=True):
        asked = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")]
        for r in (0, 1):
            written = read_lines(f"evol_answer/{name}_test/a-run/rd_{r}.jsonl")
            assert [list(record) for record in written] == [[*record, "answer"] for record in asked]
            assert [record | {"answer": None} for record in written] == [record | {"answer": None} for record in asked]


def test_questions_without_id_and_with_answers(made, ask, capsys):
    folder = ask(made, "--rounds", 0, questions=[{"question": "A?", "answer": "gold"}, {"question": "B?"}])
    assert [list(record.items())[:2] for record in read_lines(folder / "rd_0.jsonl")] == [
        [("id", 1), ("question", "A?")],
        [("id", 2), ("question", "B?")],
    ]
    assert "gold" not in answers(folder)
    assert "mine_test_set.jsonl: has answers; the model's stand in their place" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-new-tokens", 0], "--max-new-tokens: expected at least 1, got 0"),
        (["--max-tokens-per-batch", -1], "--max-tokens-per-batch: expected at least 1, got -1"),
        (["--temperature", -0.1], "--temperature: expected 0 or more, got -0.1"),
        (["--temperature", "nan"], "--temperature: expected 0 or more, got nan"),
        (["--temperature", "inf"], "--temperature: expected 0 or more, got inf"),
        (["--temperature", 1, "--top-p", 0], "--top-p: expected more than 0 and at most 1, got 0"),
        (["--temperature", 1, "--top-p", 1.1], "--top-p: expected more than 0 and at most 1, got 1.1"),
        (["--temperature", 1, "--top-p", "nan"], "--top-p: expected more than 0 and at most 1, got nan"),
        (["--top-p", 0.9], "--top-p: no token is drawn at temperature 0"),
        (["--seed", -1], "--seed: expected 0 or more, got -1"),
        (["--rounds", 1, 2], "has models of rounds 0 to 1, got 2"),
        (["--rounds", -1], "has models of rounds 0 to 1, got -1"),
        (["--output", __file__], "test_generate.py is a file; name another"),
        (["--output", f"{__file__}/answers"], "test_generate.py is a file; name another"),
    ],
)
def test_refused_options(made, ask, options, words, capsys):
    folder = ask(made, *options, status=2)
    assert words in capsys.readouterr().err
    assert not folder.exists()


def test_refused_runs(copy, ask, tmp_path, capsys):
    run, model = copy
    ask(tmp_path, status=2)
    assert "expected the folder of a run" in capsys.readouterr().err
    (model / "model.safetensors").unlink()
    ask(run, status=2)
    assert "output/rd_0: not loadable as a model" in capsys.readouterr().err
    shutil.rmtree(run / "output")
    ask(run, status=2)
    assert "no round has a model yet" in capsys.readouterr().err


def test_two_files_of_one_name(made, tmp_path, capsys):
    files = [write_lines(tmp_path / name, QUESTIONS) for name in ("mine_test_set.jsonl", "b/mine_questions.jsonl")]
    assert main(["generate", str(made), "--questions", *map(str, files), "--output", str(tmp_path / "o")]) == 2
    assert f"answers to {files[0]} and {files[1]} would both go to mine_test; rename one" in capsys.readouterr().err
