"""Tasks about parts of pictures: where is what a phrase says? (docs/regions.md)"""
