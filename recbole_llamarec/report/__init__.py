"""The report of a run: one HTML file beside its checkpoint, that needs nothing but a browser.

    trainer -> Journal -> collect: RunRecord -> LlamaRec-….report.json
    RunRecord and .users.csv -> figures, page.html -> LlamaRec-….html

The page is made from the two files alone, so that it can be made again without the model:
``python -m recbole_llamarec.report saved/LlamaRec-….pth``.
"""
