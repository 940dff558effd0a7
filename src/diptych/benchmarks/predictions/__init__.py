"""Predictions in files, ours or anyone's, judged without the model: a function a protocol, files in and results out.

The formulas are in ``metrics``, the strict reading in ``inputs``; ``diptych metrics`` is the command line of these.
"""
