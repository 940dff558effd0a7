"""Tasks of instructions with exact truth, one for each kind (``instruct:scenes:small``).

scores.py: what an answer earns. task.py: asking, controls, records, results.
"""
