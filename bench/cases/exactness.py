"""The gradient from micro-batches compared with that of the full batch, on a small dual encoder (width 64, depth 2, 48 px, fp32, 64
pairs in 8 micro-batches), with half of the patches dropped at random and, in Diptych, dropout as well; scenes as data. The gradient
of the full batch comes from one graph with the same random draws. open_clip: the accumulation of `open_clip_train` (`--accum-freq
8`) with its own model class and patch dropout; it draws again for the second encoding, for which it is given the draws of the
reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import Bench
from bench.peers import open_clip
from diptych.config.recipe import load_recipe
from diptych.data.loader import loader_for, mixed
from diptych.data.source import Source
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.objectives.contrastive import info_nce
from diptych.training.distributed import Cluster
from diptych.training.flops import FlopMeter
from diptych.training.gradient import BatchGradient, Pieces, Share
from diptych.training.start.setup import corpus_of

N, PIECES = 64, 8


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, float]:
    """Relative error and cosine of two gradients, over all parameters but the temperature, whose one entry can outweigh all
    others."""
    names = [n for n in expected if not n.endswith("logit_scale")]
    a, b = (torch.cat([g[n].flatten().double() for n in names]) for g in (found, expected))
    return float((a - b).norm() / b.norm()), float(F.cosine_similarity(a, b, dim=0))


def gradients(*modules: nn.Module) -> dict[str, Tensor]:
    named = {f"{i}.{n}": p for i, m in enumerate(modules) for n, p in m.named_parameters()}
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named.items()}


def data() -> tuple[Source, Tokenizer]:
    source = open_source("scenes:small").split("train")
    return source, Tokenizer.train(corpus_of(source, 500), 1000, 32)


def ours(dropout: float, patch_dropout: float) -> list[dict[str, Tensor]]:
    """Gradients from micro-batches, and from one graph over the same draws."""
    tower = {"width": 64, "depth": 2, "heads": 2, "dropout": dropout}
    recipe = load_recipe("clip", {"parts.vision": {"kind": "vit", **tower}, "parts.text": {"kind": "transformer", **tower}})
    source, tokenizer = data()
    torch.manual_seed(0)
    model = build_model(recipe, tokenizer, 48).train()
    objectives = build_objectives(recipe, model).train()
    model.set_training(patch_dropout, False)
    loader = loader_for(source, tokenizer, 48, N, 0)

    gradient = BatchGradient(model, Cluster(), False, 0, FlopMeter())
    gradient(0, Pieces(Share(loader, 0, Cluster(), N // PIECES), 0), objectives, {"info_nce": 1.0})
    found = gradients(model, objectives)

    model.zero_grad()
    objectives.zero_grad()
    passes = []
    for piece in Pieces(Share(loader, 0, Cluster(), N // PIECES), 0):
        torch.manual_seed(mixed(0, 0, piece.start, 3))  # training.step's seed of this piece
        p = model.encode(piece)
        passes.append((p["image.embedding"], p["text.embedding"]))  # in this order
    image, text = (torch.cat(x) for x in zip(*passes, strict=True))
    info_nce(image, text, objectives["info_nce"].scale, loader.batch(0)["text"].meaning).backward()
    return [found, gradients(model, objectives)]


def theirs(patch_dropout: float) -> list[dict[str, Tensor]]:
    """Gradients of open_clip_train's accumulation, and from one graph over the draws of its second encoding."""
    oc = open_clip()
    torch.manual_seed(0)
    vision = oc.CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=8, image_size=48, patch_dropout=patch_dropout)
    model = oc.CLIP(64, vision, oc.CLIPTextCfg(context_length=32, vocab_size=1001, width=64, heads=2, layers=2)).train()
    source, tokenizer = data()
    batch = loader_for(source, tokenizer, 48, N, 0).batch(0).to("cpu")
    ids = F.pad(batch["text"].ids, (0, 32 - batch["text"].ids.shape[1]))
    ids[ids == tokenizer.eos] = 1000  # open_clip pools at the highest id
    pieces = list(zip((batch["image"].pixels / 127.5 - 1).chunk(PIECES), ids.chunk(PIECES), strict=True))
    criterion = oc.ClipLoss()

    torch.manual_seed(1)
    with torch.no_grad():
        cached = [model(*piece)[:2] for piece in pieces]
    torch.manual_seed(2)
    for j, piece in enumerate(pieces):
        image, text, scale = model(*piece)[:3]
        rows = [*cached[:j], (image, text), *cached[j + 1 :]]
        criterion(*(torch.cat(x) for x in zip(*rows, strict=True)), scale).backward()
    found = gradients(model)

    model.zero_grad()
    torch.manual_seed(2)
    made = [model(*piece)[:3] for piece in pieces]
    image, text = (torch.cat([m[i] for m in made]) for i in (0, 1))
    criterion(image, text, made[0][2]).backward()
    return [found, gradients(model)]


def run(bench: Bench) -> None:
    rows = []
    for who, drop in (("diptych", 0.0), ("diptych", 0.5), ("open_clip", 0.0), ("open_clip", 0.5)):
        found, expected = ours(drop / 5, drop) if who == "diptych" else theirs(drop)
        error, cosine = difference(found, expected)
        (name,) = (n for n in expected if n.endswith("logit_scale"))
        temperature = float(found[name] / expected[name])
        what = "nothing dropped" if not drop else "patch dropout 0.5" + (", dropout 0.1" if who == "diptych" else "")
        rows.append([f"{who}, {what}", f"{error:.1e}", f"{cosine:.4f}", f"{temperature:.4f}×"])
        print("  ", *rows[-1], flush=True)
        if who == "diptych":
            bench.goal(f"{what}: relative error ≤ 1e-5", f"{error:.1e}", error <= 1e-5)
            off = abs(temperature - 1)
            bench.goal(f"{what}: error of the gradient of the temperature ≤ 1e-5", f"{off:.1e}", off <= 1e-5)
    bench.note(
        "The weights are untrained, so embeddings depend little on which patches are seen. The error of open_clip's gradient with "
        "dropping depends on this."
    )
    bench.table(["", "relative error", "cosine", "gradient of the temperature"], rows)
