"""Benchmarks: for each, one file that reads its published files, makes its questions and holds its formula.

``diptych evaluate`` runs a model on it (the tasks in ``tasks.py``), ``diptych metrics`` scores predictions in files; both use the
same functions. answers: questions about images; matching: scores of images and texts; texts: generated captions; drawings:
generated images; probes: bias, memorisation, priors; redteam: harmful requests; metrics: formulas that several of them share.
"""
