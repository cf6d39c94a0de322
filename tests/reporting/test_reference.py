"""The transcribed numbers obey the arithmetic that the paper's own evaluation must have obeyed."""

from decimal import Decimal
from functools import cache

import pytest

from osora_bench.common.errors import UserError
from osora_bench.reporting import reference
from tests import grids

RESULTS = ["table1", "table2", "table3", "table4", "table5", "table6", "figure3"]
NUMBERS = {"table1": 135, "table2": 30, "table3": 14, "table4": 9, "table5": 12, "table6": 18,
           "table7": 45, "table8": 30, "figure3": 6}  # fmt: skip
SOLID = {"BoolQ": 3270, "PIQA": 1838, "SIQA": 1954, "HellaSwag": 10042, "WinoGrande": 1267,
         "ARC_e": 567, "ARC_c": 295, "OBQA": 500,
         "MATH": 5000, "GSM8K": 1319, "GPQA": 198}  # fmt: skip


cells_of = cache(grids.cells_of)


def questions(name: str) -> dict[str, int]:
    """By column, how many questions the experiment's own suite says the set has."""
    sets = cells_of(name)[0].config.eval.datasets
    return {d.label: d.questions for d in sets}


def test_every_table_and_figure_with_numbers_is_transcribed_whole():
    assert {name: len(reference.load_reference(name)) for name in reference.names()} == NUMBERS


@pytest.mark.parametrize("name", RESULTS)
def test_every_accuracy_is_a_number_of_right_answers_of_its_suite(name):
    counts = questions(name)
    checked = 0
    for key, printed in reference.load_reference(name).items():
        if key.column not in (reference.AVERAGE, reference.PARAMS):
            assert reference.possible(Decimal(printed.value), counts[key.column]), printed
            checked += 1
    assert checked


def test_the_check_can_fail():
    assert not reference.possible(Decimal("79.19"), 570)  # ARC-e's dev set before OpenCompass's cut
    assert reference.possible(Decimal("79.19"), 567)
    assert not reference.possible(Decimal("59.32"), 299)


def test_suites_have_the_sizes_that_the_paper_used():
    found = questions("table1") | questions("table2") | questions("table3")
    assert found == SOLID


def test_every_average_is_the_mean_of_its_row_but_three():
    wrong = {
        (a.key.model, a.key.method): (str(a.printed), str(a.computed))
        for name in RESULTS
        for a in reference.averages(name)
        if a.printed != a.computed
    }
    assert wrong == {
        ("llama2-13b-chat", "vera"): ("59.38", "59.51"),
        ("qwen1.5-7b-chat", "vera"): ("71.50", "71.37"),
        ("qwen2.5-32b-instruct", "vera"): ("83.00", "83.01"),
    }


def test_the_audit_shows_printed_and_computed():
    assert "table1: llama2-13b-chat vera: printed 59.38, its cells give 59.51" in reference.audit()
    assert len(reference.audit()) == 3


@pytest.mark.parametrize("name", RESULTS)
def test_every_number_belongs_to_a_cell_of_its_experiment(name):
    cells = {
        (c.config.model.name, c.config.method.name, c.config.method.rank) for c in cells_of(name)
    }
    keys = reference.load_reference(name)
    assert {(k.model, k.method, k.rank) for k in keys} <= cells


def test_tables_that_share_a_cell_print_it_alike():
    """Tables 4, 5, 6 and Figure 3 repeat numbers of Table 2."""
    table2 = reference.load_reference("table2")
    shared = 0
    for name in ("table4", "table5", "table6", "figure3"):
        for key, printed in reference.load_reference(name).items():
            if key in table2:
                assert printed.value == table2[key].value, (name, key)
                shared += 1
    assert shared == 20


def test_an_unknown_reference_names_those_there_are():
    with pytest.raises(UserError, match="unknown reference 'tabel1'. Did you mean 'table1'"):
        reference.load_reference("tabel1")
