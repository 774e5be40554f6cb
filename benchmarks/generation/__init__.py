"""The verbalizer's rival: a ranker that writes the ranked titles, known to the package by its name.

Importing this makes ``generate`` a name of a ranker, as ``verbalizer`` and ``likelihood`` are.
"""

from generation.generating import Generating
from recbole_llamarec.ranking.protocol import register_ranker

register_ranker("generate", Generating)
