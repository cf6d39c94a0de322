"""The answers of one run, or of two beside each other, as a page: question by question."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osora_bench.benchdata.sets import gated
from osora_bench.common.errors import UserError
from osora_bench.planning.config import Config, DatasetConfig
from osora_bench.records.record import unpack
from osora_bench.records.schema import Record, ScoreRecord
from osora_bench.reporting.html import page

SCRIPTS = ("answers.js",)
UNKNOWN = "not known: unread or too long"
"""Of an answer file of before, which does not say it."""
MARKS = ("right", "wrong", "unread", "too long", "cut", UNKNOWN)
"""What an answer is filtered by."""


@dataclass(frozen=True)
class Side:
    """A run and the folder of the answers that it left."""

    record: Record
    folder: Path

    @property
    def run_id(self) -> str:
        return self.record["run_id"]

    @property
    def config(self) -> Config:
        return Config.of(self.record["config"])

    @property
    def label(self) -> str:
        """`OSoRA r=64, SmolLM2-135M, seed 0`."""
        config = self.config
        rank = "" if config.method.rank is None else f" r={config.method.rank}"
        seed = f", seed {config.seed}" if config.trains else ""
        return f"{config.method.label}{rank}, {config.model.label}{seed}"

    def dataset(self, name: str) -> DatasetConfig:
        """A set of its suite."""
        (found,) = (d for d in self.config.eval.datasets if d.name == name)
        return found


def is_gated(sides: Sequence[Side]) -> bool:
    """Whether the authors of an answered set ask that its questions never be published."""
    return any(
        gated(file)
        for side in sides
        for name in side.record["scores"]
        for file in side.dataset(name).files
    )


def answers_page(sides: Sequence[Side]) -> str:
    """The page of one run or two.

    Raises:
        UserError: answers are not there, or the two were not asked the same questions.
    """
    names = _common_sets(sides)
    sets = [_set(sides, name) for name in names]
    title = " beside ".join(side.label for side in sides)
    return page.render(
        "answers.html",
        SCRIPTS,
        {"sets": sets, "runs": [side.run_id for side in sides]},
        title=title,
        sides=[("AB"[i], side.run_id, side.label) for i, side in enumerate(sides)],
        sets=[(place, each["label"], each["told"]) for place, each in enumerate(sets)],
        two=len(sides) == 2,
        corrected=any(each["corrected"] for each in sets),
        marks=[mark for mark in MARKS if mark in _given(sets) or mark != UNKNOWN],
    )


def _given(sets: Sequence[dict[str, Any]]) -> set[str]:
    return {
        mark
        for each in sets
        for question in each["questions"]
        for side in question["sides"]
        for mark in side["marks"]
    }


def _common_sets(sides: Sequence[Side]) -> list[str]:
    first, last = sides[0], sides[-1]
    names = [name for name in first.record["scores"] if name in last.record["scores"]]
    if not names:
        told = [", ".join(side.record["scores"]) or "none" for side in sides]
        raise UserError(
            f"{first.run_id} answered no set that {last.run_id} did: {' and '.join(told)}"
            if len(sides) == 2 else f"{first.run_id} answered no questions"
        )  # fmt: skip
    for name in names:
        asked = [
            (list(side.config.eval.asked(side.dataset(name))), side.dataset(name).config)
            for side in sides
        ]
        if asked[0] != asked[-1]:
            raise UserError(
                f"{name}: {first.run_id} and {last.run_id} were not asked the same questions in "
                "the same way"
            )
    return names


def _set(sides: Sequence[Side], name: str) -> dict[str, Any]:
    """A set for the page's script: of each question the prompt, and each side's answer."""
    dataset = sides[0].dataset(name)
    answers = [_answers(side, name) for side in sides]
    positions = list(sides[0].config.eval.asked(dataset))
    scores = [side.record["scores"][name] for side in sides]
    questions = [
        {"position": position, "prompt": _text(own[0]["prompt"]),
         "sides": [_side(answer) for answer in own]}
        for position, *own in zip(positions, *answers, strict=True)
    ]  # fmt: skip
    told = " and ".join(f"{s['k']} of {s['n']} right" for s in scores)
    corrected = all(score["corrected"] for score in scores)
    return {"label": dataset.label, "told": told, "questions": questions, "corrected": corrected}


def _answers(side: Side, name: str) -> list[dict[str, Any]]:
    """The kept answers to a set, with the corrected verdict and what else is known of each."""
    place = side.folder / f"{name}.jsonl.gz"
    score = side.record["scores"][name]
    if not place.is_file():
        raise UserError(f"{place} is not there (any more): name the folder of runs, runs=FOLDER")
    with gzip.open(place, "rt", encoding="utf-8") as file:
        answers = [json.loads(line) for line in file]
    official = unpack(score["right"], score["n"])
    if [answer["right"] for answer in answers] != official:
        raise UserError(f"{place} holds other answers than the record of {side.run_id} tells of")
    corrected = score["corrected"]
    again = unpack(corrected["right"], score["n"]) if corrected else [None] * score["n"]
    asked = _asked(answers, score)
    return [
        {**answer, "corrected": verdict, "too_long": too_long}
        for answer, verdict, too_long in zip(answers, again, asked, strict=True)
    ]


def _asked(answers: Sequence[dict[str, Any]], score: ScoreRecord) -> list[bool | None]:
    """Whether each question was not asked, since its prompt left no room; None where that is not
    known: files of before say it of no answer, records how many they are, and only an empty output
    may be one."""
    silent = [answer["output"] in ("", None) for answer in answers]
    unknown = 0 < score["too_long"] < sum(silent)
    guessed = [(None if unknown else score["too_long"] > 0) if empty else False for empty in silent]
    return [answer.get("too_long", guess) for answer, guess in zip(answers, guessed, strict=True)]


def _side(answer: dict[str, Any]) -> dict[str, Any]:
    marks = [
        mark
        for mark, holds in (
            ("right", answer["right"]),
            ("wrong", not answer["right"]),
            ("unread", answer["read"] is None and answer["too_long"] is False),
            ("too long", answer["too_long"] is True),
            (UNKNOWN, answer["too_long"] is None),
            ("cut", answer.get("cut", False)),
        )
        if holds
    ]
    return {
        "output": _text(answer["output"]),
        "read": None if answer["read"] is None else _text(answer["read"]),
        "marks": marks,
        "corrected": answer["corrected"],
        "unjudged": answer.get("unjudged"),
    }


def _text(value: Any) -> str:
    """A prompt or an output as it is read: the turns of a dialogue one after another."""
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return "\n".join(f"[{turn.get('role', '')}] {turn.get('prompt', '')}" for turn in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
