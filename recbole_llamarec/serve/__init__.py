"""An HTTP service over a trained LlamaRec; ``python -m recbole_llamarec.serve`` starts it.

It needs ``pip install "recbole-llamarec[serve]"``; nothing else in the package imports it.
"""
