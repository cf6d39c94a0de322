"""Known mistakes of OpenCompass's post-processors, each with an output that it reads rightly.

The official score stays the headline of a record; the corrected one stands beside it, with the
number of questions whose verdict differs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Correction:
    """How an output is rewritten before the same post-processor and evaluator read it."""

    rule: str
    rewrite: Callable[[str], str]

    def applied(self, entry: dict[str, Any]) -> dict[str, Any]:
        """An entry of OpenCompass's predictions file with its output rewritten."""
        return {**entry, "prediction": self.rewrite(entry["prediction"])}


def without_separators(text: str) -> str:
    """Numbers without the commas between their thousands: 1,234,567 becomes 1234567."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def spelt_out(text: str) -> str:
    """An answer that is an option's letter and no more, in the form that is read: `Answer: B`."""
    return re.sub(r"^\W*([A-Z])\W*$", r"Answer: \1", text.strip())


CORRECTIONS = {
    # keeps the last run of digits: "1,234" is read as 234, and 131 of GSM8K's 1,319 answers are
    # of a thousand or more
    "gsm8k_postprocess": Correction(
        "thousands separators are no part of a number", without_separators
    ),
}
WITHOUT_CUSHION = Correction("an option's letter alone is an answer", spelt_out)
"""For `first_option_postprocess` with `cushion=False`, as SIQA has it: it reads "B." and "Answer:
B", and finds no answer in "B", which is all that a model says once trained to name the option."""


def named(kind: Any) -> str:
    """The bare name of a class or function that an OpenCompass configuration holds, itself or as a
    dotted path."""
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def of(config: Any) -> Correction | None:
    """The correction for a dataset configuration's post-processor, if it has a known mistake."""
    settings = config.eval_cfg.get("pred_postprocessor", {})
    name = named(settings.get("type"))
    if name == "first_option_postprocess" and not settings.get("cushion", True):
        return WITHOUT_CUSHION
    return CORRECTIONS.get(name)
