"""Hydra's entry: one cell, or a multirun of them in one process.

python -m osora_bench model=toy method=lora method.rank=8 seed=0
python -m osora_bench -m method=lora,osora seed=0,1
"""

import sys

from osora_bench.cli.run import cell_verb
from osora_bench.common.process import name_user, open_what_is_closed

if __name__ == "__main__":
    open_what_is_closed()
    name_user()
    sys.exit(cell_verb(sys.argv[1:]))
