"""Encoders: a sentence-transformers model's embeddings are those of its encode, others' as by hand, or refused."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from support.model_families import DIM, SMALL, build, spread
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, BertConfig, BertModel

from diverseevol_fast import embed
from diverseevol_fast._common.errors import InputError
from diverseevol_fast.cli.main import main
from diverseevol_fast.data.templates import PROMPT as PROMPT_TEXT
from diverseevol_fast.demo.rows import generate_rows
from diverseevol_fast.embedding.encoder import encoder_of
from diverseevol_fast.models.load import load_causal_lm, load_tokenizer

LONGEST = 64
ENCODER = SMALL | {"max_position_embeddings": LONGEST, "pad_token_id": 0}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    """The tiny one, which puts <s> before a text and </s> after it."""
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tokenizer):
    """A folder with a tiny BERT and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    spread(BertModel(BertConfig(**ENCODER))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(rows):
    return [row["instruction"] for row in rows[:30]] + ["  spaces around  ", "UPPER Case\n", "a", "x " * 100]


def sentence(folder, *modules, mode="mean", length=None, include_prompt=True, **options):
    torch.manual_seed(2)
    first = Transformer(str(folder), max_seq_length=length), Pooling(DIM, mode, include_prompt)
    modules = [module() for module in modules]
    return SentenceTransformer(modules=[*first, *modules], device="cpu", **options)


def check_as_encode(model, texts, within=1e-5):
    expected = model.encode(texts, batch_size=7)
    got = embed(texts, model).values.numpy()
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= within * np.abs(expected).max()
    return got


PROMPT = {"prompts": {"kind": "query: "}, "default_prompt_name": "kind"}
DENSE = (lambda: Dense(DIM, 12), Normalize)


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken", "max", "weightedmean", ("cls", "mean")])
def test_sentence_poolings_are_as_encode(bert, texts, mode):
    check_as_encode(sentence(bert, mode=mode), texts)


@pytest.mark.parametrize("modules", [(Normalize,), DENSE, (lambda: LayerNorm(DIM),)])
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_what_follows_the_pooling_is_as_encode(bert, texts, mode, modules):
    check_as_encode(sentence(bert, *modules, mode=mode), texts)


@pytest.mark.parametrize("modules", [(), (Normalize,)])
def test_a_cut_to_fewer_dimensions_is_as_encode(bert, texts, modules):
    assert check_as_encode(sentence(bert, *modules, truncate_dim=8), texts).shape[1] == 8


def test_the_default_prompt_is_as_encode(bert, texts):
    with_prompt = check_as_encode(sentence(bert, **PROMPT), texts)
    assert np.abs(with_prompt - embed(texts, sentence(bert)).values.numpy()).max() > 0.1


def test_a_prompt_that_is_left_out_of_the_mean_is_refused(bert, texts):
    with pytest.raises(InputError, match="leaves its prompt out"):
        embed(texts, sentence(bert, include_prompt=False, **PROMPT))
    check_as_encode(sentence(bert, include_prompt=False), texts)


def test_max_seq_length_and_a_lower_max_length_hold(bert, texts):
    check_as_encode(model := sentence(bert, length=12), texts)
    model.max_seq_length = 20
    check_as_encode(model, texts)
    found = embed(texts, model, max_length=9).values
    model.max_seq_length = 9
    assert torch.equal(found, embed(texts, model, max_length=50).values)
    check_as_encode(model, texts)


@pytest.mark.parametrize("modules", [(), (Normalize,), DENSE, (lambda: LayerNorm(DIM),)])
def test_a_sentence_model_in_bfloat16_is_near_encode(bert, texts, modules):
    check_as_encode(sentence(bert, *modules).bfloat16(), texts, within=0.05)


def test_a_file_of_another_pooling_or_without_what_follows_is_refused(bert, texts, tmp_path):
    embed(texts, sentence(bert, mode="cls"), store=tmp_path / "x.npy")
    for other in (sentence(bert, mode="max"), sentence(bert, Normalize, mode="cls")):
        with pytest.raises(InputError, match="not made from this data and model"):
            embed(texts, other, store=tmp_path / "x.npy")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_pooling_given_with_a_sentence_model_is_refused(bert, texts, pooling):
    with pytest.raises(InputError, match="has its own; expected None"):
        embed(texts, sentence(bert), pooling=pooling)


def test_a_sentence_model_of_other_modules_is_refused(bert, texts):
    model = sentence(bert)
    with pytest.raises(InputError, match=r"Transformer, Pooling, \.\.\., got \['Transformer', 'Normalize'"):
        embed(texts, SentenceTransformer(modules=[model[0], Normalize(), model[1]], device="cpu"))


def test_a_causal_sentence_model_that_pads_on_the_left_is_as_encode(tiny_model, texts):
    model = sentence(tiny_model, mode="lasttoken", length=LONGEST)
    model.tokenizer.padding_side = "left"
    check_as_encode(model, texts)


def by_hand(model, tokenizer, texts, pooling):
    """Each text by itself."""
    body, values = copy.deepcopy(model).double().eval(), []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt").input_ids
        with torch.no_grad():
            states = body(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        values.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling])
    return torch.stack(values)


def check_by_hand(model, tokenizer, texts, pooling="mean", **options):
    expected = by_hand(model, tokenizer, texts, pooling)
    found = embed(texts, model, tokenizer, pooling=pooling, max_length=LONGEST, max_tokens_per_batch=300, **options)
    assert float((found.values - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("kind", ["causal", "encoder"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_poolings_by_hand_whichever_side_the_tokenizer_pads(bert, tokenizer, texts, kind, pooling, side):
    model = build("llama") if kind == "causal" else AutoModel.from_pretrained(bert)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    check_by_hand(model, tokenizer, texts, pooling, centers_first=[2, 5])


FAMILIES = {
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**ENCODER | {"pad_token_id": 1})),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=400, dim=DIM, hidden_dim=64, n_layers=2, n_heads=4)
    ),
    "modernbert": lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(**ENCODER, local_attention=16, cls_token_id=1, sep_token_id=2)
    ),
    "deberta": lambda: transformers.DebertaV2Model(
        transformers.DebertaV2Config(**ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"])
    ),
    "fnet, which sees its padding": lambda: transformers.FNetModel(
        transformers.FNetConfig(vocab_size=400, hidden_size=DIM, num_hidden_layers=2, intermediate_size=64)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_by_hand(tokenizer, texts, family):
    check_by_hand(spread(FAMILIES[family]()), tokenizer, texts[:20])


def test_a_text_as_long_as_the_positions_of_roberta_allow(tokenizer):
    model = spread(FAMILIES["roberta"]())
    assert torch.isfinite(embed(["x " * 100], model, tokenizer).values).all()


class PoolerOnly(torch.nn.Module):
    """Gives one vector for a row."""

    def __init__(self):
        super().__init__()
        self.embeddings = torch.nn.Embedding(400, DIM)

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(pooler_output=self.embeddings(input_ids).mean(1))


PICTURES = {"hidden_size": DIM, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
REFUSED = {
    "no token embeddings": (lambda: torch.nn.Linear(2, 2), "expected a transformers model of text"),
    "an encoder-decoder": (
        lambda: transformers.BartModel(transformers.BartConfig(vocab_size=400, d_model=16)),
        "an encoder-decoder model",
    ),
    "a pooler": (PoolerOnly, "gives no last hidden state for each token"),
    "clip": (
        lambda: transformers.CLIPModel(transformers.CLIPConfig(text_config=ENCODER, vision_config=PICTURES)),
        "model: CLIPModel",
    ),
    "pictures": (lambda: transformers.ViTModel(transformers.ViTConfig(**PICTURES)), "model: ViTModel"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_without_states_for_tokens_is_refused(tokenizer, what):
    make, words = REFUSED[what]
    with pytest.raises(InputError, match=words):
        embed(["a"], make(), tokenizer)


def test_an_unknown_pooling_is_named():
    with pytest.raises(InputError, match="pooling: expected mean, cls, last, got 'max'"):
        encoder_of(build("llama"), "max")


def lora(folder, **settings):
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=4, **settings)
    torch.manual_seed(3)
    return peft.get_peft_model(load_causal_lm(folder), settings)


def test_a_lora_model_equals_the_merged_one(tiny_model, tokenizer, texts):
    model = lora(tiny_model)
    found = embed(texts, model, tokenizer).values
    merged = embed(texts, model.merge_and_unload(), tokenizer).values
    assert float((found - merged).abs().max()) <= 1e-5 * float(merged.abs().max())
    base = embed(texts, load_causal_lm(tiny_model), tokenizer).values
    assert float((found - base).abs().max()) > 0.01


def test_a_file_of_another_lora_alpha_or_of_adapters_switched_off_is_refused(tiny_model, tokenizer, texts, tmp_path):
    embed(texts, lora(tiny_model), tokenizer, store=tmp_path / "x.npy")
    other, off = lora(tiny_model, lora_alpha=64), lora(tiny_model)
    off.base_model.disable_adapter_layers()
    for model in (other, off):
        with pytest.raises(InputError, match="not made from this data and model"):
            embed(texts, model, tokenizer, store=tmp_path / "x.npy")


def test_learned_prompts_of_a_peft_model_are_not_left_out_unsaid(tiny_model, tokenizer):
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(InputError, match="model"):
        embed(["a"], peft.get_peft_model(load_causal_lm(tiny_model), settings), tokenizer)


TALKS = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t * 2}]} for t in ("ab", "c")]
TALKS_AS_TEXTS = ["ab\nabab", "c\ncc"]


def plain(rows):
    return ["\n".join(text for text in (r["instruction"], r.get("input"), r["output"]) if text) for r in rows]


@pytest.mark.parametrize("kind", ["sentence", "encoder", "causal sentence"])
def test_an_encoder_gets_the_rows_own_texts(bert, tiny_model, tokenizer, rows, kind):
    """No preamble, and not the end token, which this tokenizer has."""
    rows = [*rows[:12], {"instruction": "a", "input": "b", "output": "c"}]
    if kind == "encoder":
        model, given = AutoModel.from_pretrained(bert), tokenizer
    else:
        model, given = sentence(bert if kind == "sentence" else tiny_model, length=LONGEST, **PROMPT), None
    for data, texts in ((rows, plain(rows)), (TALKS, TALKS_AS_TEXTS)):
        assert torch.equal(embed(data, model, given).values, embed(texts, model, given).values)
        if given is None:
            expected = model.encode(texts, batch_size=1)
            assert np.abs(embed(data, model).values.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_template_given_holds_for_encoders_and_causal_models(bert, tokenizer, rows):
    rows = [row for row in rows if not row.get("input")][:6]
    for model, end in ((AutoModel.from_pretrained(bert), ""), (build("llama"), "</s>")):
        for name, texts in (
            ("alpaca", [PROMPT_TEXT.format(**row) + row["output"] + end for row in rows]),
            ("plain", [text + end for text in plain(rows)]),
        ):
            found = embed(rows, model, tokenizer, template=name)
            assert torch.equal(found.values, embed(texts, model, tokenizer).values)


def test_the_template_is_part_of_a_files_record(bert, tokenizer, rows, tmp_path):
    model = AutoModel.from_pretrained(bert)
    for name, recorded in ((None, "plain"), ("alpaca", None)):
        embed(rows[:5], model, tokenizer, template=name, store=tmp_path / f"{name}.npy")
        assert json.loads((tmp_path / f"{name}.npy.json").read_text()).get("template") == recorded


def test_the_command_line_takes_any_rows_by_a_text_column(bert, tmp_path, capsys):
    data, output = tmp_path / "rows.jsonl", tmp_path / "subset.jsonl"
    rows = [{"id": i, "body": text} for i, text in enumerate(["a b", "c", "d e f", "  "])]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ["--data", str(data), "--model", str(bert)]
    select = ["select", *given, "--output", str(output), "-n", "3"]
    assert main([*select, "--text-column", "body"]) == 2
    assert "1 rows have an empty 'body', the first is row 3" in capsys.readouterr().err
    assert main([*select, "--text-column", "text"]) == 2
    assert "line 1: key 'text' is missing; got 'id', 'body'" in capsys.readouterr().err
    assert main([*select, "--text-column", "body", "--for", "trl"]) == 2
    assert "--for trl: trains on responses" in capsys.readouterr().err
    assert main([*select, "--text-column", "body", "--skip-empty", "--template", "alpaca"]) == 2
    assert "template 'alpaca': the rows are texts" in capsys.readouterr().err
    assert main([*select, "--text-column", "body", "--columns", "{output: id}"]) == 2
    assert "columns: name parts of a row" in capsys.readouterr().err
    assert main([*select, "--text-column", "body", "--skip-empty"]) == 0
    assert "template: plain, the default for encoders" in capsys.readouterr().err
    assert sorted(output.read_text().splitlines()) == [json.dumps(row) for row in rows[:3]]
    assert main(["embed", *given, "--text-column", "body", "--output", str(tmp_path / "x.npy")]) == 0
    tokenizer = load_tokenizer(bert)
    expected = embed([row["body"] for row in rows], AutoModel.from_pretrained(bert), tokenizer).values
    assert np.abs(np.load(tmp_path / "x.npy") - expected.numpy()).max() < 1e-6


def test_the_command_line_takes_a_template_file(bert, tmp_path, data_file, rows, capsys):
    template = tmp_path / "mine.txt"
    template.write_text("{output} <- {instruction}\n")
    given = ["embed", "--data", str(data_file), "--model", str(bert), "--template", str(template)]
    assert main([*given, "--output", str(tmp_path / "x.npy")]) == 0
    assert f"template: {template}, as given" in capsys.readouterr().err
    texts = [f"{row['output']} <- {row['instruction']}" for row in rows]
    expected = embed(texts, AutoModel.from_pretrained(bert), load_tokenizer(bert)).values.numpy()
    assert np.abs(np.load(tmp_path / "x.npy") - expected).max() < 1e-6


def test_the_command_line_takes_a_sentence_models_folder(bert, tmp_path):
    model, rows = sentence(bert, Normalize), generate_rows(12, seed=5)
    model.save(str(tmp_path / "model"))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "x.npy"
    assert main(["embed", "--data", str(data), "--model", str(tmp_path / "model"), "--output", str(output)]) == 0
    values = np.load(output)
    assert np.abs(np.linalg.norm(values, axis=1) - 1).max() < 1e-5
    assert np.abs(values - embed(rows, model).values.numpy()).max() < 1e-6
