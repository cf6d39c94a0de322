"""One command from methods to tables, and what it refuses before anything runs."""

import csv
import re
import string

import pytest
import yaml

from osora_bench.cli.main import main
from osora_bench.common import exits
from osora_bench.models import counting
from osora_bench.planning.comparison import Comparison
from osora_bench.planning.compose import compose, composer, resolve

NAME = string.ascii_letters + string.digits + "-_."
QUICK = ["trainer.max_steps=3", "eval.limit=6", "held_out=8"]


@pytest.mark.long
def test_methods_are_tuned_run_on_all_seeds_and_shown(places, session, tmp_path, capsys):
    call = ["compare", "methods=lora,osora", "seeds=2", "rates=1e-3,1e-2", f"out={tmp_path}/made"]
    assert main([*call, *QUICK, *places]) == exits.OK
    told = capsys.readouterr().out
    for title in ("Methods by average", "lora beside every other", "What it costs", "Loss on held"):
        assert title in told
    with (tmp_path / "made" / "ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["Method"]: row["Seeds"] for row in rows} == {"LoRA": "2", "OSoRA": "2", "Base": "1"}
    with (tmp_path / "made" / "costs.csv").open() as file:
        assert all(float(r["Tokens/s"]) > 0 for r in csv.DictReader(file) if r["Method"] != "Base")
    assert (tmp_path / "made" / "forest.svg").stat().st_size > 1000
    with (tmp_path / "made" / "accuracy.csv").open() as file:
        rates = {r["Method"].strip("‡"): r["η"] for r in csv.DictReader(file)}
    assert rates["Base"] == ""
    assert float(rates["LoRA"]) > 0
    with (tmp_path / "made" / "scores.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert {a["method"] for a in answers} == {"none", "lora", "osora"}
    assert len(answers) == (1 + 2 * 2) * 2 * 6  # runs, sets, questions
    experiment = yaml.safe_load((tmp_path / "made" / "experiment.yaml").read_text())
    assert experiment["blocks"][1] == {"model": ["toy"], "method": ["lora"], "rates": [1e-3, 1e-2]}
    assert main([*call, *QUICK, *places]) == exits.OK
    assert "[1/" not in capsys.readouterr().out  # nothing was left to run


@pytest.mark.long
def test_a_comparison_is_made_up_at_smoke_scale(places, session, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OSORA_DATA", "nowhere")
    call = ["compare", "methods=lora", "seeds=1", "held_out=2", f"out={tmp_path}/made"]
    assert main([*call, "scale=smoke", *places]) == exits.OK
    assert "Methods by average" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "name the methods: methods=A,B. Valid: "),
        (["methods="], "name the methods: methods=A,B. Valid: "),
        (["methods=lora,osora,lora"], "methods=lora,osora,lora: lora is named twice"),
        (["methods=lora", "sedes=2"], "unknown key 'sedes'. Did you mean 'seeds'"),
        (["methods=lora", "ratse=1e-3"], "unknown key 'ratse'. Did you mean 'rates'"),
        (["methods=lora,osra"], "unknown method 'osra'. Did you mean 'osora'"),
        (["methods=lora,none"], "the untrained model stands beside them in any case"),
        (["methods=lora", "model=toi"], "unknown model 'toi'. Did you mean 'toy'"),
        (["methods=lora", "task=toi"], "unknown task 'toi'. Did you mean 'toy'"),
        (["methods=lora", "eval=toi"], "unknown eval 'toi'. Did you mean 'toy'"),
        (["methods=lora", "seeds=0"], "seeds=0: a whole number of at least 1"),
        (["methods=lora", "rates=a"], "rates=a: not numbers such as 1e-3,1e-2"),
        (["methods=lora", "rates=inf"], "rates=inf: different numbers above 0"),
        (["methods=lora", "rates=nan"], "rates=nan: different numbers above 0"),
        (["methods=lora", "model=toy,smollm2-135m"], "model=toy,smollm2-135m: one at a time"),
        (
            ["methods=randlora", "budget=5"],
            "randlora on toy: at no rank it trains near 5 numbers, the",
        ),
        (["methods=lora", "rates=1e-3,1e-3"], "different numbers above 0"),
        (["methods=lora", "baseline=vera"], "baseline=vera: not among methods=lora"),
        (["methods=lora", "task.validation_rows=8"], "held_out=N says how many rows"),
        (
            ["methods=lora", "rates=1e-3,1e-2", "trainer.learning_rate=1e-4"],
            "trainer.learning_rate=1e-4 and rates=1e-3,1e-2: name one of them",
        ),
        (["methods=lora", "trainer.max_stps=3"], "Did you mean 'trainer.max_steps'"),
        (
            ["methods=full", "budget=100"],
            "budget=100: no rank to match it with: full; compare without budget",
        ),
        (
            ["methods=lora,full,osora,ia3", "budget=1280"],
            "no rank to match it with: full, ia3; leave them out, methods=lora,osora, or compare",
        ),
        (["methods=lora", "held_out=999999"], "task.validation_rows=999999: 3000 rows"),
    ],
)
def test_what_cannot_be_compared_is_told(given, message, places, capsys):
    assert main(["compare", *given, *places]) == exits.MISTAKE
    assert message in capsys.readouterr().err


def test_ranks_are_matched_and_the_table_says_how_near(places, capsys, monkeypatch, tmp_path):
    from osora_bench.cli import compare

    seen = []
    monkeypatch.setattr(compare, "run_experiment", lambda *given: seen.append(given[0]) or exits.OK)
    call = ["compare", "methods=lora,osora", "budget=1280", f"out={tmp_path}/made", *QUICK]
    assert main([*call, *places]) == exits.OK
    told = capsys.readouterr().out
    assert "lora: rank 1 trains 1,792, +40.0 %" in told
    assert "osora: rank 64 trains 1,280, +0.0 %" in told
    assert [block.rank for block in seen[0].blocks] == [None, [1], [64]]
    assert seen[0].tables["accuracy"].budget == 1280
    everywhere = "model.target_modules=all-linear"
    call[1:3] = ["methods=lora,dora", "budget=20480"]
    assert main([*call, everywhere, *places]) == exits.OK
    told = capsys.readouterr().out
    counted = [int(n.replace(",", "")) for n in re.findall(r"trains ([\d,]+),", told)]
    with composer():
        for block, count in zip(seen[1].blocks[1:], counted, strict=True):
            chosen = [f"method={block.method[0]}", f"method.rank={block.rank[0]}", everywhere]
            assert counting.count(resolve(compose(chosen, "t"), "t")).trainable == count


@pytest.mark.parametrize("key", ["trainer.learning_rate", "++trainer.learning_rate"])
def test_a_learning_rate_that_is_given_is_the_middle_of_those_tried(
    key, places, capsys, monkeypatch, tmp_path
):
    """And no setting of the cells: each has the rate that it tries or that is chosen."""
    from osora_bench.cli import compare

    class Planned(Exception):
        pass

    def run_experiment(*given):
        raise Planned(*given)

    monkeypatch.setattr(compare, "run_experiment", run_experiment)
    call = ["compare", "methods=lora", f"{key}=3e-3", f"out={tmp_path}/made", *QUICK, *places]
    with pytest.raises(Planned) as found:
        main(call)
    experiment, overrides, _, plan = found.value.args
    assert [block.rates for block in experiment.blocks] == [None, [1e-3, 3e-3, 9e-3]]
    assert not [o for o in overrides if "trainer.learning_rate" in o]
    tried = [cell.config.trainer.learning_rate for cell in plan.cells if cell.is_trial]
    assert tried == [1e-3, 3e-3, 9e-3]
    said = (tmp_path / "made" / "experiment.yaml").read_text().splitlines()[0]
    assert "trainer.max_steps=3" in said
    assert "trainer.learning_rate" not in said


def comparison(**changes):
    given = {
        "model": "toy", "task": "toy", "suite": "toy", "methods": ["lora", "osora"],
        "baseline": "lora", "seeds": 3, "rates": [1e-3, 1e-2], "held_out": 200, "ranks": {},
    }  # fmt: skip
    return Comparison(**{**given, **changes})


def test_comparisons_that_differ_have_names_of_their_own_and_the_same_one_its_own_again():
    others = [
        comparison(**change)
        for change in (
            {"seeds": 4},
            {"rates": [1e-3, 2e-2]},
            {"held_out": 100},
            {"baseline": "osora"},
            {"settings": ["trainer.max_steps=3"]},
            {"budget": 1280, "ranks": {"lora": 1}},
            {"suite": "toy-validation"},
        )
    ]
    assert len({one.name for one in [comparison(), *others]}) == len(others) + 1
    assert comparison().name == comparison().name
    several = [comparison(settings=list(s)) for s in (("a=1", "b=2"), ("b=2", "a=1"))]
    assert several[0].name == several[1].name
    assert all(set(one.name) <= set(NAME) for one in others)
    told = comparison(settings=["trainer.max_steps=3"]).title
    assert told == (
        "lora, osora on toy, toy, 3 seeds, rates 0.001, 0.01, 200 rows held out, "
        "trainer.max_steps=3"
    )
