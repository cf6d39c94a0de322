"""Rebuild the embedded data and model: ``python -m osora_bench.toy [--output FOLDER]``."""

import argparse
from pathlib import Path

from osora_bench.toy import pretrain, tasks


def main() -> None:
    """Write ``data/`` and ``model/`` below the output folder and print the model's quality."""
    parser = argparse.ArgumentParser(prog="python -m osora_bench.toy", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=tasks.DATA.parent, help="folder (default: the package's)"
    )
    output = parser.parse_args().output
    tasks.write_data(output / tasks.DATA.name)
    (output / "pretraining.txt").write_text(pretrain.sample_text(), "utf-8")
    pretrain.pretrain(output / pretrain.MODEL.name)
    for skill, score in pretrain.quality(output / pretrain.MODEL.name).items():
        print(f"{skill}: {score:.1f} % of the held-out questions in the old wording")


if __name__ == "__main__":
    main()
