"""Which model, and which way of adapting it, for a user's own pictures: ``diptych choose`` and ``diptych adapt``.

data.py: pictures with classes, in parts that share no near-duplicates. features.py: a model's vectors of them, kept between
commands. ways/: how a model is adapted. select.py: settings by cross-validation on the training pictures.
"""
