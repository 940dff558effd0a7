"""The operators by name; anyone's own by ``package.module:Class``."""

_HERE = "diptych.curation.operators"
OPERATORS = {
    # of the picture
    "image_size": f"{_HERE}.sizes:ImageSize",
    "image_quality": f"{_HERE}.pictures:ImageQuality",
    "image_hash": f"{_HERE}.pictures:ImageHash",
    "text_spotting": f"{_HERE}.spotting:TextSpotting",
    # of the text
    "text_length": f"{_HERE}.lengths:TextLength",
    "text_quality": f"{_HERE}.words:TextQuality",
    "language": f"{_HERE}.languages:Language",
    "perplexity": f"{_HERE}.likelihood:Perplexity",
    "concepts": f"{_HERE}.concepts:Concepts",
    "negatives": f"{_HERE}.negatives:Negatives",
    # of both
    "embed": f"{_HERE}.similarity:Embed",
    "clip_score": f"{_HERE}.similarity:ClipScore",
    "masked_clip_score": f"{_HERE}.spotting:MaskedScore",
    "sieve": f"{_HERE}.captioning:Sieve",
    "recaption": f"{_HERE}.captioning:Recaption",
    "capfilt": f"{_HERE}.captioning:CapFilt",
    "leaks": f"{_HERE}.leaks:Leaks",
    # of documents
    "document_limits": f"{_HERE}.documents:DocumentLimits",
    "assign_images": f"{_HERE}.documents:AssignImages",
    # of all rows
    "same_image": f"{_HERE}.duplicates:SameImage",
    "same_text": f"{_HERE}.duplicates:SameText",
    "near_image": f"{_HERE}.duplicates:NearImage",
    "same_meaning": f"{_HERE}.duplicates:SameMeaning",
    "balance": f"{_HERE}.concepts:Balance",
    "fuse": f"{_HERE}.fuse:Fuse",
}
