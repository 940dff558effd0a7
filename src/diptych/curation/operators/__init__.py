"""The operators by name; anyone's own by ``package.module:Class``."""

_HERE = "diptych.curation.operators"
OPERATORS = {
    "image_size": f"{_HERE}.sizes:ImageSize",
    "image_quality": f"{_HERE}.pictures:ImageQuality",
    "image_hash": f"{_HERE}.pictures:ImageHash",
    "text_length": f"{_HERE}.lengths:TextLength",
    "text_quality": f"{_HERE}.words:TextQuality",
    "language": f"{_HERE}.languages:Language",
    "fuse": f"{_HERE}.fuse:Fuse",
    "concepts": f"{_HERE}.concepts:Concepts",
    "balance": f"{_HERE}.concepts:Balance",
    "same_image": f"{_HERE}.duplicates:SameImage",
    "same_text": f"{_HERE}.duplicates:SameText",
    "near_image": f"{_HERE}.duplicates:NearImage",
    "same_meaning": f"{_HERE}.duplicates:SameMeaning",
}
