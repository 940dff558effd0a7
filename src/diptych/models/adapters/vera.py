"""VeRA, by ``peft``: random matrices that all layers share and that never change, scaled by learned vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from diptych.core.extras import need
from diptych.models.adapters.lora import NAME, Injected

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part


class Vera(Injected):
    """W x + b ⊙ B (d ⊙ A x), where b [out] and d [rank] of each layer learn, b from 0 and d from ``d`` (Kopiczko et al. 2024,
    arXiv:2310.11454, eq. 2). A [rank, in] and B [out, rank] are random and shared by all layers of the part; a layer takes as many
    columns and rows as it has inputs and outputs.

    rank: costs little in parameters (rank + out a layer), so higher ones than LoRA's are usual; it costs operations, though.
    seed: of A and B, which are in checkpoints too, since a seed gives other numbers in another version of torch.
    dropout, targets: as for LoRA.
    """

    mark = "vera_"

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        rank: Annotated[int, Field(ge=1)] = 256,
        d: Annotated[float, Field(gt=0)] = 0.1,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        targets: list[str] | None = None,
        seed: int = 0,
    ):
        self.rank, self.d, self.dropout, self.seed = rank, d, dropout, seed
        super().__init__(part, build, where, targets)
        first = self.layers()[0][2]
        self.register_buffer("A", first.vera_A[NAME])
        self.register_buffer("B", first.vera_B[NAME])
        for _, _, layer in self.layers():  # one copy, the adapter's: it is saved once, and follows the model to its device
            for name in ("A", "B"):
                delattr(layer, f"vera_{name}")
                object.__setattr__(layer, f"vera_{name}", Shared(self, name))

    def config(self, targets: Any) -> Any:
        """peft's ``VeraConfig``."""
        return need("peft", extra="adapt", what=self.where).VeraConfig(
            r=self.rank,
            d_initial=self.d,
            vera_dropout=self.dropout,
            projection_prng_key=self.seed,
            target_modules=targets,
            bias="none",
        )

    def inject(self, peft: Any, config: Any, root: nn.Module) -> None:
        """Let peft replace the layers within ``root``."""
        peft.VeraModel(root, config, NAME)  # ``inject_adapter_in_model`` refuses adapters with shared matrices

    def shared(self) -> dict[str, Tensor]:
        """A and B."""
        return {"vera_A": self.get_buffer("A"), "vera_B": self.get_buffer("B")}


class Shared:
    """A matrix of the adapter, where a layer of peft looks for it: a mapping with one entry."""

    def __init__(self, adapter: Vera, name: str):
        self.adapter, self.name = adapter, name

    def __getitem__(self, name: str) -> Tensor:
        return self.adapter.get_buffer(self.name)

    def __iter__(self) -> Iterator[str]:
        return iter((NAME,))

    def __len__(self) -> int:
        return 1
