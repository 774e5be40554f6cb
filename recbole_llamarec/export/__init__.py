"""A trained LlamaRec for other programs: weights, prompts and labels, without this package.

    checkpoint -> load: Export -> folder: adapter or merged model, tokenizer, llamarec.json,
                                          README.md, rank.py
                              -> prompts: token ids of the test rows' prompts, for a batch engine

``python -m recbole_llamarec.export`` writes them. ``rank.py`` is copied as it is and imports
nothing of this package.
"""
