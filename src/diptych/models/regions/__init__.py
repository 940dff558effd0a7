"""Parts for regions of images: how a region is pooled (``parts.regions``) and how a text is located (``parts.grounding``)."""

from diptych.models.regions.pooling import BoxPatches, MaskedPool, RoIAlign

REGIONS = {
    "roi_align": RoIAlign,
    "masked_pool": MaskedPool,
    "box_patches": BoxPatches,
}
GROUNDING = {
    "box": "diptych.models.regions.heads:BoxHead",
    "glip": "diptych.models.regions.anchors:Glip",
    "queries": "diptych.models.regions.queries:RegionQueries",
    "segments": "diptych.models.vision.grouping:SegmentHeat",
    "patches": "diptych.models.vision.grouping:PatchHeat",
    "location_tokens": "diptych.models.decoders.kosmos:LocationBox",
    "mask_tokens": "diptych.models.regions.masks:MaskTokens",
    "anchors": "diptych.models.regions.anchors:Anchors",
}
