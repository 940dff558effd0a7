"""Which of several training sets are worth having: sets added one at a time, and each left out of all (``diptych sets``).

Every arm is one recipe under the same number of operations on a mixture of some of the sets, with several seeds, and is
evaluated on the same items. plan.py: arms and their runs. run.py: the two searches and their verdicts.
table.py: the table in words.
"""
