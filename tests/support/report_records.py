"""Runs that were never made, as the report reads them."""

from dataclasses import replace
from types import SimpleNamespace

from diverseevol_fast.evaluate.report import seeds

NASTY = '<script>console.log(7)</script><img src="http://127.0.0.1:9/x">'
ODD = "_$1 <b>&--> 漢字"  # a run's name that charts, HTML and the charts' font each have trouble with


def record(name, seed=0, rounds=3, schedule="KCenterSampling", config=None, **provenance):
    """A run by hand, with nothing found out about it. config: settings that are not these."""
    settings = {
        "seed": seed,
        "evol_schedule_name": schedule,
        "whiten_n_components": False,
        "model_name_or_path": "m",
        "n_round": 2,
        "val_set_size": 10,
        "model_max_length": 512,
        "held_out_groups": None,
    }
    config = SimpleNamespace(**settings | (config or {}))
    manifest = {"provenance": {"config.seed": seed, "config.evol_schedule_name": schedule, **provenance}}
    run = SimpleNamespace(config=config, rounds=rounds, state=SimpleNamespace(manifest=lambda r: manifest))
    return seeds.Record(run, name, name, [{} for _ in range(rounds)], [10, 20, 30][:rounds], {}, {}, None)


MEASURES = {
    "vendi": {"title": "Vendi Score", "higher_is_more_diverse": True, "what": "how many"},
    "covering_radius": {"title": "Covering radius", "higher_is_more_diverse": False, "what": "how far"},
}


def drawn_at(mean, low, high):
    return {name: {"mean": mean, "low": low, "high": high} for name in MEASURES}


def measured(one, *values):
    """By round, both measures' value; random subsets are always at 4, from 2 to 6."""
    random = drawn_at(4.0, 2.0, 6.0)
    rounds = [{"values": dict.fromkeys(MEASURES, value), "random": random} for value in values]
    return replace(one, diversity={"model": "m", "random": 5, "measures": MEASURES, "rounds": rounds})


def trained(one, *rounds):
    """By round, figures of the training."""
    return replace(one, metrics=[{"train": figures} for figures in rounds])


def judged(one, test, *values):
    """By round, the Relative Score."""
    found = {
        r: SimpleNamespace(relative_score=value, low=value - 1, high=value + 1)
        for r, value in enumerate(values)
        if value
    }
    return replace(one, scores={test: found})
