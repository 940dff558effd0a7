"""The operators by name; anyone's own by ``package.module:Class``."""

OPERATORS = {
    "image_size": "diptych.curation.operators.sizes:ImageSize",
    "text_length": "diptych.curation.operators.lengths:TextLength",
}
