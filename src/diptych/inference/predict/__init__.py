"""A model over many pictures: classes with sets at a chosen error rate (``diptych predict``), vectors (``diptych embed``).

conformal.py: sets of classes that hold the true one at a chosen rate. calibration.py: the pictures that this is computed from.
classifier.py: a model that names classes. pictures.py: what an address holds, picture by picture. parts.py: work that a crash
cannot undo. table.py: the files that are written.
"""
