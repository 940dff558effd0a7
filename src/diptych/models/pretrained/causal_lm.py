"""A causal language model of transformers, with the interfaces that a vision-language model needs.

The input is vectors, so that image tokens can be among words; the output layer is separate, to be used at label positions only; a
prefix is computed once and continued in many ways.
Shapes: B batch, P prefix, L new positions, T text tokens, D width, V vocabulary, h key heads, d their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.language.seen import Seen
from diptych.models.layers.cache import KVCache
from diptych.models.pretrained.hub import fetch, from_gguf, place
from diptych.models.pretrained.tokenizer import LMTokenizer, TrimmedTokenizer, kept_ids, tiny_tokenizer

if TYPE_CHECKING:
    from diptych.models.language.pruning import Pruning

LONG = 256  # tokens


class CausalLM(nn.Module):
    """Wraps any decoder-only model of transformers; its weights are frozen.

    Padding may be on either side: it is not seen and not counted in the positions.
    """

    def __init__(self, model: Any, tokenizer: LMTokenizer):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.pruning: Pruning | None = None  # leaves out image tokens in later layers
        self.seen: Seen | None = None  # images, while gated layers look at them
        self.tokenizer = tokenizer
        self.width = int(model.config.hidden_size)
        # Whether it has plain attention, and could have the fused one: that has no cap on its logits.
        capped = getattr(model.config, "attn_logit_softcapping", None) is not None
        self.plain = model.config._attn_implementation == "eager" and bool(getattr(model, "_supports_sdpa", False)) and not capped

    @property
    def vocabulary(self) -> int:
        """The size of the vocabulary."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        """The data type of its weights."""
        dtype: torch.dtype = next(p.dtype for p in self.model.parameters())
        return dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Word vectors [B, T, D] of ``ids`` [B, T], as ``hidden`` expects them.

        If a family scales its word vectors (Gemma: by √D), the scaling is done here and not again later, since transformers does
        not scale ``inputs_embeds``. Image tokens are therefore mixed in at the scaled size.
        """
        words: Tensor = self.model.get_input_embeddings()(ids)
        return words

    def hidden(
        self,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor | None = None,
        past: KVCache | None = None,
        seen: Seen | None = None,
    ) -> Tensor:
        """Last hidden states [B, L, D], after the final norm.

        embeds [B, L, D]; mask [B, L] bool; positions [B, L], by default the count of real tokens before each;
        past: a prefix of batch 1 or B that all rows continue; seen: images for gated layers, of which a prefix remembers the last.
        """
        return self._run(embeds, mask, positions, past, seen, keep=False)[0]

    def documents(self, embeds: Tensor, positions: Tensor, seen: Seen | None = None) -> Tensor:
        """Last hidden states [B, L, D] of documents in one row, one after the other; they do not see each other.

        positions [B, L] start at 0 for each document, by which transformers separates them (with sliding windows, too). Padding at
        the end counts as more of the last document; its tokens cannot see it.
        """
        self._choose_attention(embeds.shape[1])
        with self._looking(seen):
            out = self.model.base_model(inputs_embeds=embeds.to(self.dtype), position_ids=positions, use_cache=False)
        states: Tensor = out.last_hidden_state
        return states

    def _choose_attention(self, length: int) -> None:
        """Long sequences in float32 are read by torch's fused attention, which keeps no matrix of all pairs for the backward pass:
        0.81 of the memory of a step of LLaVA-NeXT, and 0.94 of its time. Not while maps record these matrices (``watched``), or
        pruning ranks by them.
        """
        config = self.model.config
        if self.plain and self.pruning is None and not getattr(config, "watched", False) and self.dtype == torch.float32:
            config._attn_implementation = "sdpa" if length >= LONG else "eager"

    @contextmanager
    def _looking(self, seen: Seen | None) -> Iterator[None]:
        """While gated layers look at these images."""
        self.seen = seen
        try:
            yield
        finally:
            self.seen = None

    def hidden_of_branch(self, embeds: Tensor, mask: Tensor, branch: Tensor, after: int) -> Tensor:
        """Last hidden states [B, L + K, D] of ``embeds`` [B, L, D], and of ``branch`` [B, K, D] as if it followed directly after
        the first ``after`` positions.

        They do not see each other: two continuations of one prefix, read in one pass. mask [B, L] bool, padding on the right.
        """
        L, K = mask.shape[1], branch.shape[1]
        x = torch.cat([embeds, branch.to(embeds.dtype)], 1)
        place = torch.cat([torch.arange(L, device=x.device), torch.arange(after, after + K, device=x.device)])
        own = torch.arange(L + K, device=x.device) >= L
        looks = (place[:, None] >= place) & (own[:, None] == own) | own[:, None] & ~own & (place < after)
        real = torch.cat([mask.bool(), mask.new_ones(len(mask), K, dtype=torch.bool)], 1)
        return self.hidden_where(x, looks & real[:, None], place)

    def hidden_where(self, x: Tensor, looks: Tensor, place: Tensor) -> Tensor:
        """Last hidden states [B, L, D] of vectors x [B, L, D] at the positions ``place`` [L]; each sees what ``looks`` [B, L, L]
        says, and itself in any case, since padding must see something too.
        """
        looks = looks | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)

        def bias(looks: Tensor) -> Tensor:
            """What is added to the attention's logits: 0 where ``looks`` is true, else the lowest number; [B, 1, L, L]."""
            zero = torch.zeros(looks.shape, dtype=self.dtype, device=x.device)
            return zero.masked_fill_(~looks, torch.finfo(self.dtype).min)[:, None]

        given: Any = bias(looks)
        window = getattr(self.model.config, "sliding_window", None)
        if window and window < x.shape[1]:
            given = {"full_attention": given, "sliding_attention": bias(looks & (place[:, None] - place < window))}
        out = self.model.base_model(
            inputs_embeds=x.to(self.dtype), attention_mask=given, position_ids=place.expand(len(x), -1), use_cache=False
        )
        states: Tensor = out.last_hidden_state
        return states

    @torch.no_grad()
    def branches(self) -> bool:
        """Whether ``hidden_of_branch`` is right: for most models, but not for recurrent ones, and not for long sequences of some
        models with windows. Tested on a few words.
        """
        training = self.training
        self.eval()  # dropout would make any two passes differ
        try:
            x = self.embed(torch.arange(12, device=next(self.parameters()).device)[None] % self.vocabulary)
            mask = torch.ones(1, 8, dtype=torch.bool, device=x.device)
            result = self.hidden_of_branch(x[:, :8], mask, x[:, 8:], after=5).float()
            one = self.hidden(x[:, :8], mask).float()
            other = self.hidden(torch.cat([x[:, :5], x[:, 8:]], 1), torch.ones(1, 9, dtype=torch.bool, device=x.device)).float()
        except (TypeError, ValueError, RuntimeError, KeyError):
            return False
        finally:
            self.train(training)
        expected = torch.cat([one, other[:, 5:]], 1)
        return bool((result - expected).norm() <= 0.05 * expected.norm())  # more than rounding, less than a wrong mask

    def step(
        self,
        embeds: Tensor,
        mask: Tensor,
        past: KVCache | None = None,
        seen: Seen | None = None,
        images: Tensor | None = None,
    ) -> tuple[Tensor, KVCache]:
        """``hidden``, and the prefix including these positions: one step of generation.

        images [B, L] bool: which positions are image tokens; while ``pruning`` is set, the states are those of the positions that
        are left, of which the last is the last one.
        """
        hidden, prefix = self._run(embeds, mask, None, past, seen, keep=True, images=images)
        assert prefix is not None
        return hidden, prefix

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] over the next token."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _run(
        self,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor | None,
        past: KVCache | None,
        seen: Seen | None,
        keep: bool,
        images: Tensor | None = None,
    ) -> tuple[Tensor, KVCache | None]:
        from transformers import DynamicCache

        new, mask = mask.shape[1], mask.bool()
        if self.pruning is not None:
            self.pruning.begin(images, mask, None if past is None else past.deep, 0 if past is None else past.length)
        cache = None
        if past is not None:
            past = past.expand(len(mask))
            seen = past.images if seen is None else seen
            assert past.mask is not None
            mask = torch.cat([past.mask, mask], 1)  # [B, P + L]
            cache = DynamicCache(past.own)  # a new one each time: the model appends to it
        elif keep:
            cache = DynamicCache()  # without the config, which would drop positions beyond a sliding window
        if positions is None:
            positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -new:]
        self._choose_attention(mask.shape[1])
        try:
            with self._looking(seen):
                out = self.model.base_model(
                    inputs_embeds=embeds.to(self.dtype),
                    attention_mask=mask.long(),
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=cache is not None,
                )
        finally:
            deep = None if self.pruning is None else self.pruning.finish()
        if cache is None or not keep:
            return out.last_hidden_state, None
        layers: list[Any] = cache.layers
        kept = tuple((layer.keys, layer.values) for layer in layers)
        return out.last_hidden_state, KVCache(kept, mask=mask, deep=deep, images=None if seen is None else seen.last())

    @classmethod
    def random(
        cls,
        vocab: int = 512,
        width: int = 32,
        depth: int = 2,
        heads: int = 2,
        *,
        family: Literal["gemma3", "llama"] = "gemma3",
        texts: Sequence[str] = (),
        seed: int = 0,
    ) -> CausalLM:
        """A small one with random weights and a tokenizer trained on ``texts``: for tests."""
        from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

        tokenizer = tiny_tokenizer(texts, vocab)
        sizes: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": 1,
            "head_dim": max(width // heads, 8),
            "pad_token_id": tokenizer.pad,
            "bos_token_id": tokenizer.bos,
            "eos_token_id": tokenizer.eos,
        }
        if family == "gemma3":
            kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(depth)]
            config: Any = Gemma3TextConfig(**sizes, sliding_window=8, layer_types=kinds)
        else:
            config = LlamaConfig(**sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer)

    def trim(self, texts: Sequence[str] = (), kept: Sequence[int] | None = None) -> CausalLM:
        """This model with the vocabulary of ``texts``, or with the ids ``kept`` of an earlier trim; changed in place."""
        self.model, self.tokenizer = trim_vocabulary(self.model, self.tokenizer, texts, kept)
        return self


def fresh_llama(tokenizer: Any, width: int, depth: int, heads: int, hidden: int) -> CausalLM:
    """A Llama with fresh weights, drawn from torch's random numbers; input and output share their word vectors.

    tokenizer: with ``pieces``, ``decode`` and the ids ``pad``, ``bos`` and ``eos``, such as ``data.text.Tokenizer``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        pad_token_id=tokenizer.pad,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        tie_word_embeddings=True,
    )
    return CausalLM(LlamaForCausalLM(config).float(), tokenizer)


def load_causal_lm(address: Any, dtype: torch.dtype = torch.bfloat16) -> CausalLM:
    """Any causal language model of transformers by ``hf:NAME_OR_PATH``, or a GGUF file, which is converted once.

    On the CPU bf16 weights are much faster than float32, and plain attention trains a little faster than the fused kernel.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    name = place(str(address))
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise DiptychError(f"{name}: there is no such file")
        name = str(from_gguf(Path(name)))
    says = getattr(fetch(AutoConfig, name), "quantization_config", None)
    if says and not torch.cuda.is_available():
        kind = says.get("quant_method", "some method") if isinstance(says, dict) else type(says).__name__
        raise DiptychError(
            f"hf:{name}: its weights are quantised ({kind}), which needs a CUDA device and that method's package; on a CPU "
            "use the original model, "
            "which is kept in bf16 if only adapters learn"
        )
    tokenizer = LMTokenizer.of(fetch(AutoTokenizer, name))
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    return CausalLM(fetch(AutoModelForCausalLM, name, dtype=dtype, attn_implementation=attention), tokenizer)


def trim_vocabulary(
    model: Any, tokenizer: LMTokenizer, texts: Sequence[str] = (), kept: Sequence[int] | None = None
) -> tuple[Any, TrimmedTokenizer]:
    """Keep the rows of the embedding and of the output layer that ``texts`` need, plus specials, bytes and Latin letters.

    Hidden states and the kept logits stay exactly the same. A probability is then among the kept pieces: compare likelihoods only
    between texts under one vocabulary. The model is changed in place, which is what frees the memory.
    """
    if isinstance(tokenizer, TrimmedTokenizer):
        raise ValueError("the vocabulary is trimmed already")
    trimmed = TrimmedTokenizer(tokenizer, kept_ids(tokenizer, texts) if kept is None else kept)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    rows = torch.as_tensor(trimmed.kept, device=embedding.weight.device)
    embedding.weight = nn.Parameter(embedding.weight[rows].detach(), requires_grad=False)
    head.weight = embedding.weight if tied else nn.Parameter(head.weight[rows].detach(), requires_grad=False)
    if getattr(head, "bias", None) is not None:
        head.bias = nn.Parameter(head.bias[rows].detach(), requires_grad=False)
    embedding.num_embeddings = head.out_features = model.config.vocab_size = len(rows)
    embedding.padding_idx = None
    model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id = trimmed.pad, trimmed.bos, trimmed.eos
    return model, trimmed
