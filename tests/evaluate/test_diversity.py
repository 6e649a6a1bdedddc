"""`diverseevol diversity`: a real run's pools and subsets, by a fixed model or given embeddings; what is refused."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.data import data_of

from diverseevol_fast.cli.main import main
from diverseevol_fast.evaluate.diversity import YARDSTICK, _draw, measure_run
from diverseevol_fast.evaluate.evaluation_encoder import fixed_embeddings, fixed_space, fixed_texts
from diverseevol_fast.evaluate.measures import MEASURES, describe, measure_nested, partition
from diverseevol_fast.models.load import load_encoder, load_tokenizer
from diverseevol_fast.runs.finished import read_run
from diverseevol_fast.runs.inputs import split


@pytest.fixture
def x(tmp_path):
    """A file of embeddings of the data's 90 rows."""
    np.save(tmp_path / "x.npy", np.random.default_rng(5).normal(size=(90, 12)).astype(np.float32))
    return tmp_path / "x.npy"


def diversity(capsys, *argv):
    assert main(["diversity", *map(str, argv), "--quiet"]) == 0
    return capsys.readouterr().out


def refused(capsys, words, *argv):
    assert main(["diversity", *map(str, argv), "--quiet"]) == 2
    out, error = capsys.readouterr()
    assert words in error
    assert len(error.splitlines()) == 1
    assert not out


def picks(tmp_path, indices, name="picks.json"):
    (tmp_path / name).write_text(json.dumps(indices))
    return tmp_path / name


def test_a_runs_record(run, tiny_model):
    record = measure_run(run, random=3, seed=4)
    rounds = record.pop("rounds")
    assert record == {
        "model": str(tiny_model),
        "random": 3,
        "seed": 4,
        "dimension": 32,
        "rows": 80,
        "measures": describe(80),
    }
    values = fixed_embeddings(run)
    cells = partition(values, 4)
    sizes = [6, 11, 16]
    pool = torch.from_numpy(np.searchsorted(run.candidates, run.pool(2)))
    drawn = [np.random.default_rng([4, YARDSTICK, draw]).permutation(80)[:16] for draw in range(3)]
    expected, *yardstick = (
        measure_nested(values, torch.as_tensor(rows), sizes, cells) for rows in (pool.numpy(), *drawn)
    )
    for r, (entry, size) in enumerate(zip(rounds, sizes, strict=True)):
        assert list(entry) == ["round", "size", "values", "random"]
        assert (entry["round"], entry["size"], len(run.pool(r))) == (r, size, size)
        assert entry["values"] == expected[r]
        assert list(entry["random"]) == list(MEASURES)
        for name, spread in entry["random"].items():
            of_draws = [draw[r][name] for draw in yardstick]
            assert spread["mean"] == pytest.approx(np.mean(of_draws))
            assert (spread["low"], spread["high"]) == (min(of_draws), max(of_draws))
            assert spread["low"] < spread["high"]


def test_what_was_measured_is_not_measured_again(run, folder, other_model):
    saved, embeddings = folder / "diversity/measures.json", folder / "diversity/embeddings.npy"
    first = measure_run(run, random=2)
    record = json.loads(saved.read_text())
    assert len(record.pop("provenance")["model_sha256"]) == 64
    assert record == first
    before = saved.stat().st_mtime_ns, embeddings.stat().st_mtime_ns
    assert measure_run(read_run(folder), random=2) == first
    by_another = measure_run(run, space=fixed_space(run, str(other_model)), random=2)
    assert by_another["rounds"] != first["rounds"]
    assert by_another["model"] == str(other_model)
    assert measure_run(run, random=2) == first
    assert len(list(folder.glob("diversity/embeddings-????????.npy"))) == 1
    assert saved.stat().st_mtime_ns == before[0]
    for changed in ({"random": 1}, {"random": 2, "seed": 1}):
        again = measure_run(run, **changed)
        assert again != first
        assert saved.stat().st_mtime_ns > before[0]
    assert embeddings.stat().st_mtime_ns == before[1]
    earlier = read_run(folder)
    shortened = measure_run(replace(earlier, rounds=2), random=2)
    assert [entry["size"] for entry in shortened["rounds"]] == [6, 11]
    assert shortened["rounds"][0]["values"] == pytest.approx(first["rounds"][0]["values"])
    assert measure_run(run, random=2) == first


def test_a_model_is_known_by_its_files_and_not_by_its_name(run, folder, tiny_model, tmp_path):
    first = measure_run(run, random=1)
    saved = folder / "diversity/measures.json"
    before = saved.stat().st_mtime_ns
    twin = shutil.copytree(tiny_model, tmp_path / "twin")
    assert measure_run(run, space=fixed_space(run, str(twin)), random=1) == first | {"model": str(twin)}
    assert saved.stat().st_mtime_ns == before
    assert not list(folder.glob("diversity/*-????????.*"))


def test_a_changed_model_is_noticed(run, tiny_model, tmp_path):
    own = shutil.copytree(tiny_model, tmp_path / "model")
    first = measure_run(run, space=fixed_space(run, str(own)), random=0)
    model = load_encoder(own)
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight *= 2
    model.save_pretrained(own)
    changed = measure_run(run, space=fixed_space(run, str(own)), random=0)
    assert changed["rounds"][0]["values"] != first["rounds"][0]["values"]
    assert measure_run(run, random=0) == first | {"model": str(tiny_model)}


@pytest.fixture(scope="module")
def longer(three_rounds, tmp_path_factory):
    """The same run with rows cut to 200 tokens instead of 128."""
    out = tmp_path_factory.mktemp("longer") / "longer"
    config = three_rounds.parent / "config.yml"
    more = ["--output_dir", str(out), "--model_max_length", "200", "--n_round", "0"]
    assert main(["run", str(config), *more, "--quiet"]) == 0
    return out


def test_one_model_embeds_all_runs_with_the_first_ones_settings(folder, longer, other_model, tmp_path, capsys):
    second = shutil.copytree(longer, tmp_path / "longer")
    whole = json.loads(diversity(capsys, folder, second, "--model", other_model, "--random", 0, "--json"))
    assert whole[0]["rounds"][0]["values"] == pytest.approx(whole[1]["rounds"][0]["values"])
    (ours,) = folder.glob("diversity/embeddings-*.npy")
    (theirs,) = second.glob("diversity/embeddings-*.npy")
    assert ours.name == theirs.name
    np.testing.assert_array_equal(np.load(ours), np.load(theirs))


def test_runs_in_spaces_of_their_own_are_told_not_to_compare(folder, longer, tmp_path, capsys):
    def warnings_of(*runs):
        assert main(["diversity", *map(str, runs), "--random", "0", "--quiet"]) == 0
        return capsys.readouterr().err

    second = shutil.copytree(longer, tmp_path / "longer")
    assert "their metrics do not compare; name one model for all" in warnings_of(folder, second)
    assert warnings_of(folder, shutil.copytree(folder, tmp_path / "same")) == ""


def test_half_a_record_is_made_again(run, folder, capsys):
    first = measure_run(run, random=1)
    saved = folder / "diversity/measures.json"
    whole = saved.read_bytes()
    for broken in (whole[:100], b"[]"):
        saved.write_bytes(broken)
        assert main(["diversity", str(folder), "--random", "1", "--json", "--quiet"]) == 0
        printed = capsys.readouterr()
        assert f"{saved}: not a JSON object, so made again\n" in printed.err
        assert json.loads(printed.out) == [{"run": str(folder)} | first]
        assert saved.read_bytes() == whole


def test_given_embeddings_of_every_row(run, folder, x):
    record = measure_run(run, embeddings=x, random=1)
    candidates = torch.from_numpy(np.load(x)[run.candidates])
    pool = torch.from_numpy(np.searchsorted(run.candidates, run.pool(2)))
    expected = measure_nested(candidates, pool, [6, 11, 16], partition(candidates, 0))
    assert [entry["values"] for entry in record["rounds"]] == expected
    assert (record["model"], record["dimension"], record["rows"]) == (str(x), 12, 80)
    (saved,) = (folder / "diversity").iterdir()
    assert saved.match("measures-????????.json")
    np.save(x, 2 * np.load(x))
    doubled = measure_run(run, embeddings=x, random=1)["rounds"][0]["values"]
    assert doubled["covering_radius"] == pytest.approx(2 * expected[0]["covering_radius"])
    assert doubled["vendi"] == pytest.approx(expected[0]["vendi"])


def test_embeddings_in_columns_give_the_same_numbers(folder, tmp_path, data_file, x, capsys):
    for source in ([folder], [data_file, "--picks", picks(tmp_path, [5, 7, 70])]):
        by_rows, by_columns = x, tmp_path / "columns.npy"
        np.save(by_columns, np.asfortranarray(np.load(by_rows)))
        assert np.load(by_columns, mmap_mode="r").flags.f_contiguous
        printed = [diversity(capsys, *source, "--embeddings", file, "--json") for file in (by_rows, by_columns)]
        assert printed[0] == printed[1].replace(str(by_columns), str(by_rows))


def test_the_command_prints_a_line_for_each_round(folder, capsys):
    printed = diversity(capsys, folder, "--random", 2)
    record = json.loads((folder / "diversity/measures.json").read_text())
    title, head, *lines, legend = printed.splitlines()
    assert title == f"{folder}: 80 rows in 32 dimensions by {record['model']}; 2 random subsets of each size"
    assert head.split()[:2] == ["round", "size"]
    assert head.split()[-1] == "novelsum"
    assert "lower in radius, mean cos, chamfer" in legend
    assert len(lines) == 3 * 4
    for r, entry in enumerate(record["rounds"]):
        values, mean, low, high = (line.split() for line in lines[4 * r : 4 * r + 4])
        assert values == [str(r), str(entry["size"]), *(f"{value:.4g}" for value in entry["values"].values())]
        for name, key, line in (("random", "mean", mean), ("lowest", "low", low), ("highest", "high", high)):
            assert line == [name, *(f"{spread[key]:.4g}" for spread in entry["random"].values())]


def test_the_command_prints_json_of_every_run(folder, tmp_path, x, capsys):
    second = shutil.copytree(folder, tmp_path / "second")
    records = json.loads(diversity(capsys, folder, second, "--json", "--random", 0, "--embeddings", x))
    assert [record.pop("run") for record in records] == [str(folder), str(second)]
    assert records[0] == records[1] == measure_run(read_run(folder), embeddings=x, random=0)
    assert records[0]["rounds"][0]["random"] == {}


def test_subsets_of_a_data_set(tmp_path, data_file, x, capsys):
    first, second = list(range(20)), [80, 3, 41, 0, 7]
    files = picks(tmp_path, first), picks(tmp_path, {"indices": second}, "b.json")
    arguments = (data_file, "--picks", *files, "--embeddings", x, "--random", 3)
    (record,) = json.loads(diversity(capsys, *arguments, "--json"))
    values = torch.from_numpy(np.load(x))
    cells = partition(values, 0)
    assert (record["data"], record["model"], record["rows"]) == (str(data_file), str(x), 90)
    drawn = [
        measure_nested(
            values, torch.from_numpy(np.random.default_rng([0, YARDSTICK, draw]).permutation(90)[:20]), [5, 20], cells
        )
        for draw in range(3)
    ]
    for entry, path, rows, i in zip(record["subsets"], files, (first, second), (1, 0), strict=True):
        assert (entry["picks"], entry["size"]) == (str(path), len(rows))
        assert [entry["values"]] == measure_nested(values, torch.tensor(rows), [len(rows)], cells)
        assert entry["random"]["vendi"]["high"] == max(draw[i]["vendi"] for draw in drawn)
    _, _, *lines, _ = diversity(capsys, *arguments).splitlines()
    assert [line.split()[0] for line in lines] == [
        str(files[0]),
        "random",
        "lowest",
        "highest",
        str(files[1]),
        "random",
        "lowest",
        "highest",
    ]


def test_what_needs_two_rows_is_left_open_for_one(tmp_path, data_file, x, capsys):
    arguments = data_file, "--picks", picks(tmp_path, [17]), "--embeddings", x, "--random", 2
    (record,) = json.loads(diversity(capsys, *arguments, "--json"))
    (entry,) = record["subsets"]
    open_ones = {name for name, value in entry["values"].items() if value is None}
    assert open_ones == {"mean_cosine", "nearest_distance", "novelsum"}
    for name in open_ones:
        assert entry["random"][name] == {"mean": None, "low": None, "high": None}
    _, _, values, *spread, _ = diversity(capsys, *arguments).splitlines()
    assert [line.split().count("-") for line in (values, *spread)] == [3, 3, 3, 3]


def test_a_data_set_is_embedded_by_the_model_once(tmp_path, data_file, tiny_model, rows, capsys):
    arguments = data_file, "--picks", picks(tmp_path, [1, 2, 3]), "--model", tiny_model, "--random", 1, "--json"
    first = diversity(capsys, *arguments)
    (store,) = (tmp_path / "diversity").glob("embeddings-????????.npy")
    values = torch.from_numpy(np.load(store))
    assert values.shape == (90, 32)
    model, tokenizer = load_encoder(tiny_model), load_tokenizer(tiny_model)
    (text,) = fixed_texts(data_of(rows), np.array([41]), tokenizer)
    with torch.inference_mode():
        expected = model(tokenizer(text, return_tensors="pt").input_ids).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(values[41], expected, atol=1e-5, rtol=1e-5)
    made_at = store.stat().st_mtime_ns
    assert diversity(capsys, *arguments) == first
    assert store.stat().st_mtime_ns == made_at


def test_a_sentence_transformer_is_a_fixed_model(tmp_path, data_file, rows, other_model, capsys):
    """The encoder's own pooling, normalization and token limit are used."""
    package = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    modules = [Transformer(str(other_model), max_seq_length=40), Pooling(32, "lasttoken"), Normalize()]
    model = package.SentenceTransformer(modules=modules, device="cpu")
    model.save(str(tmp_path / "sentence"))
    subset = picks(tmp_path, [5, 50, 9])
    diversity(capsys, data_file, "--picks", subset, "--model", tmp_path / "sentence", "--random", 0)
    (store,) = (tmp_path / "diversity").glob("*.npy")
    expected = model.encode(fixed_texts(data_of(rows), np.arange(90), model.tokenizer))
    np.testing.assert_allclose(np.load(store), expected, atol=1e-5)


def test_other_column_names(tmp_path, rows, x, capsys):
    renamed = [{"question": row["instruction"], "answer": row["output"]} for row in rows]
    (tmp_path / "renamed.json").write_text(json.dumps(renamed))
    arguments = tmp_path / "renamed.json", "--picks", picks(tmp_path, [4, 5]), "--embeddings", x
    refused(capsys, "expected 'instruction'", *arguments)
    assert "novelsum" in diversity(capsys, *arguments, "--columns", "{instruction: question, output: answer}")
    refused(capsys, "--columns: expected a mapping", *arguments, "--columns", "question")
    refused(capsys, "--columns: not YAML", *arguments, "--columns", "{")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds no row"),
        ("[1, 90]", "expected rows from 0 to 89, got 90"),
        ("[-1]", "expected rows from 0 to 89, got -1"),
        ("[4, 5, 4]", "row 4 is given more than once"),
        ("[1, 2", "expected a JSON list of rows"),
        ('["1"]', "expected a flat list of row numbers"),
        ("[true]", "expected a flat list of row numbers"),
        (None, "no such file"),
    ],
)
def test_picks_that_are_none_are_refused(content, words, tmp_path, data_file, x, capsys):
    if content is not None:
        (tmp_path / "picks.json").write_text(content)
    refused(capsys, words, data_file, "--picks", tmp_path / "picks.json", "--embeddings", x)


def test_embeddings_that_do_not_fit_are_refused(tmp_path, folder, data_file, capsys):
    values = np.ones((90, 4), np.float32)
    values[33, 2] = np.nan
    bad = {
        "row 33 holds a value that is not finite": values,
        "89 rows, but the data of": values[:89],
        "expected one float32 or float16 array": values.astype(np.float64),
        "N and D at least 1": values[:, :0],
    }
    for words, array in bad.items():
        np.save(tmp_path / "bad.npy", array)
        refused(capsys, words, data_file, "--picks", picks(tmp_path, [1, 2]), "--embeddings", tmp_path / "bad.npy")
        refused(capsys, words, folder, "--embeddings", tmp_path / "bad.npy")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    refused(capsys, "not a whole .npy array", folder, "--embeddings", tmp_path / "bad.npy")
    refused(capsys, "no.npy: no such file", folder, "--embeddings", tmp_path / "no.npy")
    assert not list(folder.glob("diversity/*"))


def test_a_run_without_models_is_refused(folder, capsys):
    shutil.rmtree(folder / "output")
    refused(capsys, "no round has a model yet", folder)


def test_a_run_whose_data_has_changed_is_refused(folder, tmp_path, capsys, three_rounds, rows):
    data = three_rounds.parent / "rows.jsonl"
    whole = data.read_bytes()
    try:
        data.write_text(json.dumps(rows[0]) + "\n")
        refused(capsys, "has changed since the run", folder)
        data.unlink()
        refused(capsys, "no such file", folder)
    finally:
        data.write_bytes(whole)


def test_arguments_that_do_not_go_together_are_refused(tmp_path, folder, data_file, x, tiny_model, capsys):
    subset = picks(tmp_path, [1, 2])
    refused(capsys, "--picks: is of a data set; a run has its own", folder, "--picks", subset)
    refused(capsys, "expected a model or embeddings, got both", folder, "--model", tiny_model, "--embeddings", x)
    refused(capsys, "expected folders of runs", folder, data_file, "--picks", subset, "--embeddings", x)
    refused(capsys, "expected folders of runs", data_file, data_file, "--picks", subset, "--embeddings", x)
    refused(capsys, "say with picks which rows", tmp_path, "--embeddings", x)
    refused(capsys, "--columns: is of a data set; a run has its own", folder, "--columns", "{instruction: q}")
    for sources in ([tmp_path / "typo"], [folder, tmp_path / "typo"]):
        refused(capsys, "typo: no such file or folder; expected the folder of a run, or a data set", *sources)
    refused(capsys, "--model: is missing", data_file, "--picks", subset)
    refused(capsys, "no such file", tmp_path / "no.json", "--picks", subset, "--embeddings", x)
    refused(capsys, "no such local folder", folder, "--model", tmp_path / "nowhere/at/all")
    refused(capsys, "--random: expected", folder, "--random", -1)
    refused(capsys, "--seed: expected", folder, "--seed", -1)
    refused(capsys, "--seed: expected", folder, "--seed", 1 << 32)
    assert not list(folder.glob("diversity/*"))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_yardstick_is_not_a_runs_own_initial_pool(seed):
    """numpy treats [seed, 0] and [seed] as the same seed."""
    config = SimpleNamespace(seed=seed, init_label_num=20, n_round=1, n_query=5, val_set_size=0, full_data_path="x")
    pool = split(90, [], config)[2]
    for draw in range(3):
        assert len(set(_draw(90, 20, seed, draw).tolist()) & set(pool)) < 15
