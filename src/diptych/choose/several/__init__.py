"""Pictures with any number of labels each (``labels:``): the ways that fit them, the choice of settings, the table's cells.

data.py: the pictures. ways.py: ways, and why the others do not fit. select.py: cross-validation, probabilities, thresholds.
cells.py: one cell of ``choose``. adapt.py: ``diptych adapt``.

Shapes throughout: N pictures, L labels, E width of the vectors; targets are bool [N, L].
"""

from __future__ import annotations
