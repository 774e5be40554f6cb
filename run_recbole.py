"""RecBole's run_recbole.py with LlamaRec and LRURec registered."""

import recbole_llamarec  # noqa: F401  also registers in spawned processes, which import this file
from recbole_llamarec.__main__ import main

if __name__ == "__main__":
    main()
