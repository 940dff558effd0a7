"""Ways of adapting a model, by name. A way of your own: ``package.module:Class``, a subclass of ``Way``."""

from __future__ import annotations

from diptych.choose.ways.adapter import ClipAdapter
from diptych.choose.ways.base import Choice, Support, Way
from diptych.choose.ways.gda import GaussianDiscriminant
from diptych.choose.ways.linear import CrossModal, LinearProbe
from diptych.choose.ways.majority import Majority
from diptych.choose.ways.names import Clap, NameProbe, TaskRes
from diptych.choose.ways.nearest import NearestNeighbours, Prototypes
from diptych.choose.ways.texts.attention import SentenceAttention
from diptych.choose.ways.texts.projections import BagOfSentences, Gist
from diptych.choose.ways.texts.search import PromptSearch
from diptych.choose.ways.tip import TipAdapter, TipAdapterF
from diptych.choose.ways.unlabelled.propagate import DynamicAdapter, LabelPropagation
from diptych.choose.ways.unlabelled.pseudo import Entropy, PseudoLabels
from diptych.choose.ways.unlabelled.unem import GaussianUnem, Unem
from diptych.choose.ways.wise import Wise
from diptych.choose.ways.zeroshot import Descriptions, ZeroShot
from diptych.core.registry import resolve

WAYS: dict[str, type[Way]] = {
    way.name: way
    for way in (
        Majority,
        ZeroShot,
        Descriptions,
        NearestNeighbours,
        Prototypes,
        GaussianDiscriminant,
        LinearProbe,
        CrossModal,
        NameProbe,
        Clap,
        TaskRes,
        TipAdapter,
        TipAdapterF,
        ClipAdapter,
    )
}
TRANSFER: tuple[type[Way], ...] = (
    Wise,
    PseudoLabels,
    Entropy,
    LabelPropagation,
    DynamicAdapter,
    Unem,
    GaussianUnem,
    PromptSearch,
    SentenceAttention,
    BagOfSentences,
    Gist,
)
WAYS |= {way.name: way for way in TRANSFER}

__all__ = ["WAYS", "Choice", "Support", "Way", "way_named"]


def way_named(name: str) -> type[Way]:
    """The way of a name. DiptychError for an unknown one."""
    cls: type[Way] = resolve(name, WAYS, "way of adapting")
    return cls
