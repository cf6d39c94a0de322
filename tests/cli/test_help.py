"""`osora-bench VERB --help`: each verb's own page, which names all of its options."""

import pytest

from osora_bench.cli import answers, card, compare, data, evaluate, judge, page, params, report
from osora_bench.cli.main import PARSED, VERBS, main
from osora_bench.cli.options import HOW

HOW_KEYS = [f"{key}=" for key in HOW]
CELLS = ["experiment=", "scale=smoke", "scale=full", "KEY=VALUE"]


def of_parser(parser):
    return [name for action in parser._actions for name in action.option_strings]


OPTIONS = {
    "plan": [*CELLS, *HOW_KEYS, "--json", "hydra/launcher="],
    "run": [*CELLS, *HOW_KEYS, "hydra/launcher="],
    "tables": [*CELLS, *(f"{key}=" for key in report.TABLES_OPTIONS)],
    "report": [*CELLS, *(f"{key}=" for key in page.OPTIONS), "--watch", "ledger="],
    "answers": [f"{key}=" for key in answers.OPTIONS],
    "card": [f"{key}=" for key in card.OPTIONS],
    "figures": [*CELLS, *(f"{key}=" for key in report.FIGURES_OPTIONS)],
    "scores": [*CELLS, *(f"{key}=" for key in report.SCORES_OPTIONS)],
    "compare": [*HOW_KEYS, *(f"{key}=" for key in compare.OPTIONS)],
    "results": [],
    "methods": [],
    "audit": [],
    "params": [*(f"{key}=" for key in params.OPTIONS), "--csv"],
    "data": [*data.ACTIONS, "--replace"],
    "leakage": ("experiment=", "scale=smoke"),
    "cell": ["-m", "KEY=VALUE", "hydra/launcher="],
    "evaluate": of_parser(evaluate.parser()),
    "judge": of_parser(judge.parser()),
    "export": ["--adapter", "--model", "--output", "--format"],
    "svd": ["build", "list", "clean"],
}


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_is_its_own_and_names_its_options(verb, flag, capsys):
    if verb in PARSED:
        with pytest.raises(SystemExit) as ended:
            main([verb, flag])
        assert ended.value.code == 0
    else:
        assert main([verb, flag]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: osora-bench {verb}")
    assert [option for option in OPTIONS[verb] if option not in page] == []
    assert max(map(len, page.splitlines())) <= 100


def test_the_general_page_names_every_verb(capsys):
    for call in (["--help"], ["-h"], ["help"], []):
        assert main(call) == 0
        lines = capsys.readouterr().out.splitlines()
        assert {line.split()[0] for line in lines if line.startswith("  ")} >= set(VERBS)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_that_of_the_package(flag, capsys):
    assert main([flag]) == 0
    name, number = capsys.readouterr().out.split()
    assert name == "osora-bench"
    assert number[0].isdecimal()


@pytest.mark.parametrize("verb", ["compare", "run", "tables"])
def test_an_option_is_explained_once(verb, capsys):
    main([verb, "--help"])
    lines = [line.split("=")[0] for line in capsys.readouterr().out.splitlines() if "=" in line]
    keys = [line.strip() for line in lines if line.startswith("  ") and line[2:3].strip()]
    assert "methods" in keys
    assert [key for key in set(keys) - {"scale"} if keys.count(key) > 1] == []
