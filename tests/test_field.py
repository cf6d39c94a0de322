"""The table of reported situations names tests that exist."""

import ast
from pathlib import Path

import pytest

from tests.field import REPORTS, is_reported

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("report", REPORTS)
def test_each_report_names_tests_that_exist(report):
    for test in REPORTS[report]:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in defined or (not name and any(n.startswith("test_") for n in defined)), test


def test_a_test_belongs_to_a_report_by_its_file_or_its_name():
    assert is_reported("tests/pipeline/test_tied.py::test_anything[case]")
    assert is_reported("tests/cli/test_main.py::test_outputs_that_are_closed_are_no_mistake[a-b]")
    assert not is_reported("tests/cli/test_main.py::test_something_else")
