"""Hydra's entry: one cell, or a multirun of them in one process.

python -m osora_bench model=toy method=lora method.rank=8 seed=0
python -m osora_bench -m method=lora,osora seed=0,1
"""

import sys

from osora_bench.cli.run import cell_verb

if __name__ == "__main__":
    sys.exit(cell_verb(sys.argv[1:]))
