"""Answers are kept as they come: what an evaluation that goes on finds."""

import pytest

from osora_bench.common.errors import UserError
from osora_bench.evaluation.journal import Journal
from tests.evaluation.toy_model import prompts, wrapped


def test_an_evaluation_that_dies_goes_on_where_it_stopped(toy, tmp_path):
    expected = wrapped(toy, 3).generate(prompts(), 16)

    class Dies(Journal):
        def put(self, question, answer):
            super().put(question, answer)
            if len(self._answers) == 7:
                raise KeyboardInterrupt

    with Dies(tmp_path / "journal", "me") as journal, pytest.raises(KeyboardInterrupt):
        wrapped(toy, 3, journal=journal).generate(prompts(), 16)
    with (tmp_path / "journal").open("a") as file:
        file.write('["half a line')  # what a crash in the middle of writing leaves
    with Journal(tmp_path / "journal", "me") as journal:
        assert len(journal._answers) == 7
        model = wrapped(toy, 3, journal=journal)
        asked = []
        whole = model._continue
        model._continue = lambda *args: asked.append(len(args[0])) or whole(*args)
        assert model.generate(prompts(), 16) == expected
    assert asked == [24 - 7]
    with Journal(tmp_path / "journal", "me") as journal:
        assert len(journal._answers) == 24
    with Journal(tmp_path / "journal", "another adapter") as journal:
        assert not journal._answers


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path):
    with Journal(tmp_path / "journal", "me") as journal:
        journal.put("first", 1)
    broken = Journal(tmp_path / "journal", "me")
    broken._file.close()
    broken._file = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
    with pytest.raises(UserError, match="No space left on device.*goes on from them"):
        broken.put("second", 2)
    with Journal(tmp_path / "journal", "me") as again:
        assert again.get("first") == 1
        assert again.get("second") is None


def test_answers_that_end_at_the_length_limit_are_counted(toy, make_cell, tmp_path):
    """Not those that end by themselves with their last token; a resumed evaluation knows it."""
    unbounded = wrapped(toy)
    free = unbounded.generate(prompts(), 64)
    long = [len(toy[1](text, add_special_tokens=False)["input_ids"]) for text in free]
    limit = sorted(long)[len(long) // 2]
    expected = {i for i, length in enumerate(long) if length >= limit}
    assert 0 < len(expected) < len(long)
    with Journal(tmp_path / "journal", "me") as journal:
        model = wrapped(toy, journal=journal)
        model.generate(prompts(), limit)
        assert model.cut == expected
    with Journal(tmp_path / "journal", "me") as journal:
        again = wrapped(toy, journal=journal)
        again._continue = None  # nothing is asked a second time
        again.generate(prompts(), limit)
        assert again.cut == expected
    ended = [length for i, length in enumerate(long) if i not in unbounded.cut]
    one_more = wrapped(toy)
    one_more.generate(prompts(), max(ended) + 1)  # room for every end token
    assert one_more.cut == unbounded.cut < expected


def test_a_journal_that_does_not_say_what_was_cut_is_asked_again(toy, tmp_path):
    with Journal(tmp_path / "journal", "me") as journal:
        model = wrapped(toy, journal=journal)
        expected = model.generate(prompts(4), 16)
        for key, (text, _) in list(journal._answers.items()):
            journal._answers[key] = text  # as it was kept before
        assert model.generate(prompts(4), 16) == expected
        assert all(len(kept) == 2 for kept in journal._answers.values())
