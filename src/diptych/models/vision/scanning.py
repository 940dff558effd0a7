"""Which image tokens a language model is given, chosen by the attention in the tower (the first stage of VScan, Zhang et al. 2025,
arXiv:2505.22654, §3.2; the order of steps as in the authors' code). Nothing is trained.

Shapes: B batch, N patches of a grid of g × g, R of them that are kept, w side of a window, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.errors import DiptychError
from diptych.models.layers.attention import Attention, Transformer
from diptych.models.layers.merging import rows_of
from diptych.models.vision.towers import ViT


def attended(attention: Attention, x: Tensor, extra: int) -> Tensor:
    """The attention that each patch gets in a layer, averaged over the heads: from the first class token, or, in a tower without
    one, from all patches. x [B, extra + N, D], what the layer reads → [B, N].
    """
    k, _ = attention.read(x)
    q = attention.q(x[:, :1] if extra else x)
    q = q.view(*q.shape[:2], attention.heads, -1).transpose(1, 2)
    weights: Tensor = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).float().softmax(-1)
    return weights.mean((1, 2))[:, extra:]


def chosen(shallow: Tensor, deep: Tensor, keep: int, window: int, share: float = 0.5) -> Tensor:
    """The patches that are kept, [B, keep] int64, row by row.

    Local scan: of each window of ``window`` × ``window`` patches equally many with the most attention in a shallow layer, [B, N],
    together (1 − share) · keep or, if that does not divide, less. Global scan: of the others those with the most in a deep layer.
    """
    g = round(shallow.shape[1] ** 0.5)
    count = (g // window) ** 2
    each = int(keep * (1 - share)) // count
    place = torch.arange(g * g, device=shallow.device).view(g // window, window, g // window, window)
    place = place.transpose(1, 2).reshape(count, window**2)  # [windows, patches of each]
    best = shallow[:, place].topk(each, -1).indices  # [B, windows, each]
    local = place.expand(len(shallow), -1, -1).gather(2, best).flatten(1)
    rest = deep.scatter(1, local, -torch.inf).topk(keep - local.shape[1], 1).indices
    return torch.cat([local, rest], 1).sort(1).values


def joined(x: Tensor, kept: Tensor) -> Tensor:
    """Each token that is not kept goes into the most similar kept one, by cosine; a kept token becomes the mean of itself and of
    those. x [B, N, D], kept [B, R] → [B, R, D].
    """
    stays, others = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device).scatter(1, kept, True), x.shape[1] - kept.shape[1]
    own = rows_of(x, kept)
    if not others:
        return own
    lost = rows_of(x, stays.long().argsort(dim=1, stable=True)[:, :others])
    near = (F.normalize(lost.float(), dim=-1) @ F.normalize(own.float(), dim=-1).transpose(1, 2)).argmax(-1)[..., None]
    count = torch.ones_like(own[..., :1]).scatter_add(1, near, torch.ones_like(lost[..., :1]))
    return own.scatter_add(1, near.expand_as(lost), lost) / count


def window_of(grid: int, local: int) -> int:
    """The side of the windows: a quarter of the grid (the paper's 6 of 24), or more if there are more windows than ``local``
    tokens.
    """
    fits = [w for w in range(1, grid + 1) if grid % w == 0 and 4 * w >= grid and (grid // w) ** 2 <= max(local, 1)]
    return fits[0]


class Scan:
    """The choice, between a tower and a connector that maps patch by patch. It works by hooks on both.

    keep: R. window: side of the windows; None: ``window_of``. The shallow layer is at a quarter of the depth (the paper's sixth of
    24), the deep one the last but one.
    """

    def __init__(self, tower: Any, connector: Any, keep: int, window: int | None = None):
        if not isinstance(tower, ViT) or tower.pooling == "cascade" or type(tower.transformer) is not Transformer:
            raise DiptychError(f"scan: it reads the attention of a ViT of ours; the tower is {type(tower).__name__}")
        if not getattr(connector, "token_wise", False) or tower.scattered:
            raise DiptychError(
                "scan: it chooses among patches, so it needs a connector that maps each of them: mlp, linear, linear_norm"
            )
        if not 1 <= keep <= tower.tokens:
            raise DiptychError(f"scan: {keep} of {tower.tokens} patches")
        window = window or window_of(tower.grid, keep // 2)
        if tower.grid % window:
            raise DiptychError(f"window: {window} does not divide the side of the grid, {tower.grid} patches")
        self.keep, self.window, self.extra = keep, window, tower.extra
        blocks: Any = tower.transformer.blocks
        self.layers = max(0, len(blocks) // 4 - 1), max(0, len(blocks) - 2)
        self.seen: dict[int, Tensor] = {}
        for i in dict.fromkeys(self.layers):
            blocks[i].attention.register_forward_pre_hook(self._watch(i), with_kwargs=True)
        tower.register_forward_hook(self._note)
        connector.register_forward_hook(self._reduce)
        connector.tokens, connector.placed = keep, False

    def _watch(self, i: int) -> Any:
        def watch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            """Keeps what a layer attends to."""
            assert isinstance(layer, Attention)
            self.seen[i] = attended(layer, args[0], self.extra)

        return watch

    def _note(self, _: nn.Module, args: Any, out: Tokens) -> None:
        """The choice goes with the tokens that it is for, since those of other images may be read before the connector."""
        shallow, deep = (self.seen[i] for i in self.layers)
        out.tokens.scanned = chosen(shallow, deep, self.keep, self.window)  # type: ignore[attr-defined]

    def _reduce(self, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """What the connector gives, without the tokens that are not kept."""
        kept: Tensor | None = getattr(args[0], "scanned", None)
        if kept is None:
            raise DiptychError("scan: the connector reads tokens that are not as the tower gave them")
        return joined(out, kept)
