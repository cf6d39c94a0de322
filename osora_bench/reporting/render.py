"""A table as Markdown, LaTeX and CSV. Knows nothing of records or layouts."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from osora_bench.reporting.reference import PARAMS, SETTINGS
from osora_bench.reporting.table import EDGE, LIMITED, SOURCE, TIED, Table


def _for_reading(table: Table) -> pd.DataFrame:
    """What neighbouring rows of a model share is named once, as in the paper; thousands marked."""
    frame, display = table.frame, table.frame.astype(str)  # one without rows as well
    if SOURCE in frame:  # three lines for a row: the first one names it
        repeated = [c for c in frame if c not in (SOURCE, *table.numbers)]
        display[repeated] = display[repeated].where(frame[SOURCE].eq("ours"), "")
    if "Model" in frame:
        same_model = frame["Model"].eq(frame["Model"].shift())
        for column in ("Model", *(c for c in SETTINGS if c in frame and not table.numbers)):
            display[column] = display[column].mask(
                frame[column].eq(frame[column].shift()) & same_model, ""
            )
    if PARAMS in frame:
        display[PARAMS] = [f"{int(t):,}" if t.isdigit() else t for t in frame[PARAMS]]
    return display


def _under_headings(frame: pd.DataFrame, groups: Sequence[str] | None) -> pd.DataFrame:
    """Rows with each group's heading in a row of its own above them."""
    if groups is None:
        return frame
    lines = []
    for index, group in enumerate(groups):
        if index == 0 or groups[index - 1] != group:
            lines.append([group] + [""] * (frame.shape[1] - 1))
        lines.append(frame.iloc[index].tolist())
    return pd.DataFrame(lines, columns=frame.columns)


def markdown(table: Table) -> str:
    """GitHub's table syntax, aligned so that a terminal shows it as well."""
    plain = _for_reading(table)
    if table.ties is not None:
        plain = plain.where(~table.ties, plain + f" {TIED}")
    display = _under_headings(plain.where(~table.best, "**" + plain + "**"), table.groups)
    body = display.to_markdown(
        index=False, disable_numparse=True, colalign=_alignment(table, "left", "right")
    )
    return "\n\n".join([f"### {table.title}", body, *table.notes]) + "\n"


ALONE = r"""\ifx\documentclass\usepackage % so it is inside a document, which may use neither
  \let\tableends\relax
\else
  \documentclass{article}
  \usepackage[a4paper, margin=1cm]{geometry}
  \usepackage{booktabs}
  \setlength\tabcolsep{4pt}
  \begin{document}
  \def\tableends{\end{document}}
\fi
"""


def latex(table: Table) -> str:
    r"""A booktabs table in a file that compiles as it stands, and that a document with
    `\usepackage{booktabs}` takes as `\input{...}`."""
    escapes = str.maketrans({"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$"})
    escapes |= str.maketrans(
        {"η": r"$\eta$", LIMITED: r"\dag{}", EDGE: r"\ddag{}", TIED: "underlined"}
    )
    plain = _for_reading(table).map(lambda text: text.translate(escapes))
    plain.columns = [str(heading).translate(escapes) for heading in plain]
    # a mark beside each of ten numbers would not fit the page
    for command, marks in ((r"\underline{", table.ties), (r"\textbf{", table.best)):
        if marks is not None:
            marked = marks.set_axis(plain.columns, axis="columns")
            plain = plain.where(~marked, command + plain + "}")
    display = _under_headings(plain, table.groups)
    body = display.to_latex(
        index=False,
        caption=" ".join(
            [f"{table.title}.".translate(escapes), *[n.translate(escapes) for n in table.notes]]
        ),
        label=f"tab:{table.name}",
        column_format="".join(_alignment(table, "l", "r")),
        position="t",
    )
    return f"{ALONE}{body}\\tableends\n"


def _alignment(table: Table, text: str, number: str) -> list[str]:
    return [text if c in ("Model", "Method", SOURCE) else number for c in table.frame.columns]


def _for_machines(table: Table) -> pd.DataFrame:
    """Every value in its own row: a group's heading becomes a column."""
    if table.groups is None:
        return table.frame
    return pd.concat([pd.Series(table.groups, name="Model", dtype=str), table.frame], axis=1)


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write each table as Markdown, CSV and LaTeX; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for table in tables:
        texts = {
            ".md": markdown(table),
            ".csv": _for_machines(table).to_csv(index=False),
            ".tex": latex(table),
        }
        for suffix, text in texts.items():
            target = folder / f"{table.name}{suffix}"
            target.write_text(text, encoding="utf-8")
            files.append(target)
    return files
