"""Maps: which patches of a picture a model's score for a text depends on, or fits best.

``formulas`` computes maps from attentions, activations and gradients; ``watching`` records these without a change of any score;
``base.Maps`` is what every model offers, ``run`` and ``foreign`` give it for runs and for models of other libraries. Whether a map
tells the truth is measured in ``benchmarks.maps``.
"""
