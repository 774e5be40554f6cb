"""LlamaRec for RecBole: two-stage recommendation with a language model as ranker.

Importing this package registers ``LlamaRec`` and ``LRURec`` with RecBole, after which RecBole's own
functions accept them by name.
"""

from recbole_llamarec.integration.registration import register

register()

from recbole_llamarec.llamarec import LlamaRec  # noqa: E402
from recbole_llamarec.retrieval.lrurec import LRURec  # noqa: E402
from recbole_llamarec.version import __version__  # noqa: E402

__all__ = ["LRURec", "LlamaRec", "__version__"]
