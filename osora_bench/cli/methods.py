"""osora-bench methods: docs/methods.md, what conf/method has and on which terms."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.cell import cell_of
from osora_bench.planning.compose import compose, composer, group_choices, resolve
from osora_bench.planning.config import Config

HELP = {
    "methods": """\
usage: osora-bench methods

Print docs/methods.md: every method of conf/method, what it trains, from which paper, on which
terms; and the classes of PEFT that are left out. It takes no option.
"""
}
MODEL = "smollm2-135m"
"""Whose parameters the page counts."""
PAPER = "2505.14350"
"""OSoRA's, whose tables and figures the files of its variants name."""
LINKS = {
    "arXiv": "https://arxiv.org/abs/",
    "doi": "https://doi.org/",
    "openreview": "https://openreview.net/forum?id=",
}
LEFT_OUT = {
    "PolyConfig": "learns several tasks at once and is told each row's; a cell has one task",
    "MultitaskPromptTuningConfig": "is told each row's task, as Poly; alone it is prompt tuning",
    "XLoraConfig": "mixes LoRA adapters that were trained before, and has to be given them",
}
"""PEFT's configuration classes without a file, and why."""
STARTS = {
    "corda": "starts from activations and takes that off the base weights: the saved adapter alone "
    "would come back on others",
    "lora_ga": "as corda, from gradients",
    "loftq": "PEFT asks for bitsandbytes, which is not among the pinned packages",
    "pissa": "`method=pissa` makes the same from the store of decompositions",
    "pissa_niter_[number of iters]": "draws at random what it takes off the base weights: the "
    "saved adapter would come back on others",
    "gaussian": "runs: `+method.peft.init_lora_weights=gaussian`",
}
"""Values of LoRA's init_lora_weights without a file, and why."""
SETTINGS = {
    "alora_invocation_tokens": "aLoRA (arXiv 2504.12397): the tokens are a tokenizer's",
    "arrow_config": "routes between adapters that were trained before",
    "use_bdlora": "lays factors out for serving on several GPUs",
    "use_qalora": "for base weights quantised by groups of columns (GPTQ), which none here are",
}
"""Settings of LoRA that make it another method, without a file, and why."""
HEAD = """\
# Methods

Made by `osora-bench methods`; nothing here is edited by hand, and a test holds it against
`conf/method` and the installed PEFT ({version}).

One file of `conf/method` is one method, and `method=NAME` chooses it. Each file's first line says
what it trains and where it comes from. The settings are the paper's or PEFT's own where these fit
any model; no learning rate is among them, since it is the experiment's to choose. Every one trains,
is saved, comes back from its folder with the same answers and is scored
(`tests/pipeline/test_every_method.py`). A method of your own: [own-method.md](own-method.md).

- trainable: counted by `params` on {model}, with the file's settings; where it is not counted,
  what the method makes depends on the weights, and a cell's record has the count.
- merges: `eval.merge=true` can put it into the weights.
- shared: several processes can share a training (`trainer.processes`); where not, that is refused
  beforehand.
"""


def methods_verb(arguments: Sequence[str]) -> int:
    """Print the page."""
    if arguments:
        raise UserError(unknown("option", arguments[0], []))
    print(page(), end="")
    return 0


def page() -> str:
    """docs/methods.md as the code and conf/method make it."""
    import peft

    rows = list(_rows())
    table = _table(rows[0], (row.values() for row in rows))
    parts = [HEAD.format(version=peft.__version__, model="SmolLM2-135M"), table]
    parts += ["\n## PEFT's classes without a file\n", _reasons("class", LEFT_OUT)]
    parts += ["\n## Starts of LoRA without a file (`init_lora_weights`)\n"]
    parts += [_reasons("start", STARTS)]
    parts += ["\n## Settings of LoRA without a file\n", _reasons("setting", SETTINGS)]
    return "\n".join(parts) + "\n"


def _reasons(kind: str, reasons: dict[str, str]) -> str:
    return _table((kind, "why"), ((f"`{name}`", why) for name, why in reasons.items()))


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Without padding: a longer cell changes its own line only."""
    columns = list(heads)
    lines = (columns, [":--" for _ in columns], *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows() -> Iterator[dict[str, str]]:
    with composer():
        for name in group_choices("method"):
            cfg = resolve(compose([f"model={MODEL}", f"method={name}"], name), name)
            source, what = told(name)
            yield {
                "file": f"`{name}`",
                "label": cfg.method.label.replace("*", r"\*"),
                "trains": what,
                "source": source,
                "class": _class(cfg),
                "r": str(cfg.method.rank or ""),
                "trainable": _trainable(cfg),
                "merges": _merges(cfg),
                "shared": _shares(cfg),
            }


def told(name: str) -> tuple[str, str]:
    """Where a method comes from and what it trains, by the comment that its file begins with:
    `NAME (SOURCE): WHAT.`

    Raises:
        UserError: the file does not say so.
    """
    file = paths.conf_files("method")[name]
    lines = file.read_text(encoding="utf-8").split("\nname:")[0].splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines)
    head, colon, rest = comment.partition(": ")
    if not colon:
        raise UserError(f"{file}: does not begin with a comment `NAME (SOURCE): what it trains`")
    what = re.split(r"(?<=[\w)])\. (?=[A-Z])", rest)[0].rstrip(".")
    return _source(head), what


def _source(head: str) -> str:
    """The paper that the beginning of a comment names, as a link where that is possible."""
    if found := re.search(r"\((.*)\)", head):
        place, _, key = found[1].partition(" ")
        return f"[{found[1]}]({LINKS[place]}{key})" if place in LINKS else found[1]
    if found := re.search(r"(Table|Fig\.) \d", head):
        return f"[OSoRA, {found[0]}]({LINKS['arXiv']}{PAPER})"
    return ""


def _class(cfg: Config) -> str:
    return str((cfg.method.peft or {}).get("_target_", "")).rpartition(".")[2]


def _trainable(cfg: Config) -> str:
    from osora_bench.models.counting import NeedsWeights, count

    try:
        return f"{count(cfg).trainable:,}"
    except NeedsWeights:
        return "not counted"


def _merges(cfg: Config) -> str:
    from osora_bench.models import merging

    if cfg.method.peft is None:
        return ""
    return _answer(merging.check_method, replace(cfg, eval=replace(cfg.eval, merge=True)))


def _shares(cfg: Config) -> str:
    from osora_bench.training.checks import check_sharing

    if not cfg.trains:
        return ""
    parts = replace(cfg, trainer=replace(cfg.trainer, processes=2))
    return _answer(check_sharing, cell_of(parts, []))


def _answer(check: Callable[[Any], object], asked: Any) -> str:
    try:
        check(asked)
    except UserError:
        return "no"
    return "yes"
