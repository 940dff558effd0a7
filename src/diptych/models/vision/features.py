"""The output of a frozen vision tower for each image, computed once: useful if the same images come again in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from diptych.core.batch import Tokens

LIMIT = 2**30  # bytes that may be cached


class Features:
    """Encodings by the images' own pixels, so that augmented images, and other images under the same name, are computed anew."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Tensor, Tensor]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, pixels: Tensor, encode: Callable[[Tensor], Tokens]) -> Tokens:
        """pixels [B, 3, H, W] as the loader gave them; ``encode`` is called with the new images."""
        keys = [hashlib.blake2b(row.numpy(), digest_size=16).digest() for row in pixels.cpu().contiguous()]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        features = {key: self._known[key] for key in keys if key not in new}
        if new:
            result = encode(pixels[list(new.values())])
            features |= {key: (result.tokens[i].cpu(), result.pooled[i].cpu()) for i, key in enumerate(new)}
            size = sum(x.nbytes for key in new for x in features[key])
            if self.bytes + size <= LIMIT:
                self._known |= {key: features[key] for key in new}
                self.bytes += size
        tokens, pooled = zip(*(features[key] for key in keys), strict=True)
        return Tokens(torch.stack(tokens).to(pixels.device), torch.stack(pooled).to(pixels.device))


def fits(images: int, tokens: int, width: int) -> bool:
    """Whether the features of this many images fit into the cache, in float32."""
    return images * (tokens + 1) * width * 4 <= LIMIT
