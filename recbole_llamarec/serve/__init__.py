"""An HTTP service over a trained LlamaRec; ``python -m recbole_llamarec.serve`` starts it.

It needs ``pip install ".[serve]"``; nothing else in the package imports it.
"""
