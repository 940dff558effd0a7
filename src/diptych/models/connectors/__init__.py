"""Connectors: image tokens [B, N, D of the tower] to [B, N', D of the language model]. One class per kind. Those of clips read
all frames of a clip."""

from diptych.models.connectors.attending import Perceiver, PlacedQueries
from diptych.models.connectors.clips import AdaptivePool, EachFrame, FramesAndMean, PooledFrames, VideoQFormer
from diptych.models.connectors.gradual import GradualMerging
from diptych.models.connectors.mapping import Mapping
from diptych.models.connectors.mlp import MLP, Linear, LinearNorm, PerTower, Pooled
from diptych.models.connectors.pooling import Average, Downsample, Merge, Neighbours, PixelShuffle
from diptych.models.connectors.queries import CAbstractor, QFormer
from diptych.models.connectors.rearranging import Rearranged
from diptych.models.connectors.resampler import Resampler
from diptych.models.connectors.tiles import AnyResolution, Windows

CONNECTOR = {
    "linear": Linear,
    "linear_norm": LinearNorm,
    "mlp": MLP,
    "per_tower": PerTower,
    "any_resolution": AnyResolution,
    "windows": Windows,
    "native_merge": "diptych.models.connectors.merging:NativeMerge",
    "pooled": Pooled,
    "mapping": Mapping,
    "average": Average,
    "downsample": Downsample,
    "neighbours": Neighbours,
    "pixel_shuffle": PixelShuffle,
    "merge": Merge,
    "gradual_merging": GradualMerging,
    "rearranged": Rearranged,
    "c_abstractor": CAbstractor,
    "q_former": QFormer,
    "resampler": Resampler,
    "placed_queries": PlacedQueries,
    "perceiver": Perceiver,
    "each_frame": EachFrame,
    "adaptive_pool": AdaptivePool,
    "pooled_frames": PooledFrames,
    "frames_and_mean": FramesAndMean,
    "video_q_former": VideoQFormer,
    "queries": "diptych.models.fusion.qformer:Queries",  # of a text part of kind q_former, which has looked at the tower's tokens
    "bridge": "diptych.models.connectors.bridge:Bridge",  # of a text part of kind med, which looks at the tower's tokens
    "instructed": "diptych.models.connectors.instructed:Instructed",  # the same, which have read an instruction too
}
