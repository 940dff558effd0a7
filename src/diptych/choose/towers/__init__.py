"""Ways of adapting that train a tower or its prompts, by name. A way of your own: ``package.module:Class``, a subclass of
``TowerWay``.

model.py: the model as the beginning of a recipe. base.py, ways.py: the ways. fit.py: from a way to a finished run. average.py:
means of runs' weights. heads.py: the classes that a run learned.
"""

from __future__ import annotations

from diptych.choose.towers.answers import LmLlamaAdapter, LmLora, LmVlAdapter
from diptych.choose.towers.base import TowerWay
from diptych.choose.towers.fit import fit, made, tower_recipe
from diptych.choose.towers.fused import Cola
from diptych.choose.towers.model import TowerModel, tower_model
from diptych.choose.towers.prompted import CoCoOp, MaPLe, Mmrl, MmrlPlus, VptDeep
from diptych.choose.towers.tpt import Tpt
from diptych.choose.towers.ways import Captions, CoOp, CoOpPerClass, Dora, Flyp, Full, Lora, Vera, Vpt, WiseFt
from diptych.core.registry import resolve

TOWER_WAYS: dict[str, type[TowerWay]] = {
    way.name: way
    for way in (
        CoOp, CoOpPerClass, CoCoOp, Tpt, MaPLe, Mmrl, MmrlPlus, Vpt, VptDeep, Lora, Dora, Vera, Full, Flyp, WiseFt, LmLora,
        LmLlamaAdapter, LmVlAdapter, Captions, Cola,
    )
}  # fmt: skip

__all__ = ["TOWER_WAYS", "TowerModel", "TowerWay", "fit", "made", "tower_model", "tower_recipe", "tower_way_named"]


def tower_way_named(name: str) -> type[TowerWay]:
    """The way of a name. DiptychError for an unknown one."""
    cls: type[TowerWay] = resolve(name, TOWER_WAYS, "way of adapting a tower")
    return cls
