"""The built-in operators by name; your own: ``package.module:Class``."""

OPERATORS_PACKAGE = "diptych.curation.operators"
_OPERATORS = {
    # of the picture
    "image_size": "images.size:ImageSize",
    "image_quality": "images.quality:ImageQuality",
    "image_colours": "images.quality:ImageColours",
    "image_hash": "images.quality:ImageHash",
    "text_spotting": "images.text_spotting:TextSpotting",
    # of the text
    "text_length": "text.length:TextLength",
    "text_quality": "text.quality:TextQuality",
    "language": "text.language:Language",
    "perplexity": "text.perplexity:Perplexity",
    "concepts": "text.concepts:Concepts",
    "negatives": "text.negatives:Negatives",
    # of both
    "embed": "pairs.similarity:Embed",
    "clip_score": "pairs.similarity:ClipScore",
    "masked_clip_score": "images.text_spotting:MaskedScore",
    "sieve": "pairs.captioning:Sieve",
    "recaption": "pairs.captioning:Recaption",
    "capfilt": "pairs.captioning:CapFilt",
    "leaks": "duplicates.leaks:Leaks",
    # of documents
    "document_limits": "documents:DocumentLimits",
    "assign_images": "documents:AssignImages",
    # of all rows
    "same_image": "duplicates.operators:SameImage",
    "same_text": "duplicates.operators:SameText",
    "near_image": "duplicates.operators:NearImage",
    "same_meaning": "duplicates.operators:SameMeaning",
    "balance": "text.concepts:Balance",
    "fuse": "fuse:Fuse",
}
OPERATORS = {name: f"{OPERATORS_PACKAGE}.{place}" for name, place in _OPERATORS.items()}
