"""Which token comes next: the sampling parameters of one request, as vLLM understands them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Foreign = Any
"""A value of torch or transformers, whose types are not here."""

GREEDY = 1e-5
"""Temperatures below it mean the likeliest token, as with vLLM."""

FIRST_LOOKS = (64, 1024)
"""How many of the likeliest tokens are looked at for `top_p` before all are sorted."""


@dataclass(frozen=True)
class Sampling:
    """The parameters; `bias` maps token ids to what is added to their scores."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    bias: Mapping[int, float] = field(default_factory=dict)
    allowed: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()


class Sampler:
    """Chooses the tokens of one request; `error` is what went wrong with it."""

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], ends: Sequence[int], min_tokens: int
    ) -> None:
        self._sampling = sampling
        self._prompt = prompt
        self._ends = list(ends)
        self._min_tokens = min_tokens
        self._made: list[int] = []
        self._random: Foreign = None
        self._counts: Foreign = None
        self._seen: Foreign = None
        self.error: Exception | None = None

    def __deepcopy__(self, _: object) -> Sampler:
        return self  # transformers copies requests that it begins anew

    def choose(self, scores: Foreign) -> int:
        """Return the next token for a vector of scores, which may be changed."""
        scores = self._penalized(self._masked(scores))
        greedy = self._sampling.temperature < GREEDY
        token = int(scores.argmax()) if greedy else self._draw(scores)
        if not scores[token].isfinite():
            raise ValueError("the model's scores are no numbers")
        self._made.append(token)
        self._count(token)
        return token

    def _masked(self, scores: Foreign) -> Foreign:
        sampling, made = self._sampling, self._made
        if sampling.allowed:
            kept = scores[list(sampling.allowed)]
            scores = scores.new_full(scores.shape, -float("inf"))
            scores[list(sampling.allowed)] = kept
        banned = [word[-1] for word in sampling.bad_words if _ends_with(made, word[:-1])]
        if len(made) < self._min_tokens:
            banned += self._ends
        if banned:
            left = scores.clone()
            left[banned] = -float("inf")
            scores = left if left.max().isfinite() else scores  # one has to come
        for token, bias in sampling.bias.items():
            scores[token] += bias
        return scores

    def _penalized(self, scores: Foreign) -> Foreign:
        sampling = self._sampling
        if sampling.repetition_penalty != 1:
            if self._seen is None:
                self._seen = scores.new_zeros(scores.shape, dtype=_truth(scores))
                self._seen[list(self._prompt)] = True
            weaker = scores / sampling.repetition_penalty
            stronger = scores * sampling.repetition_penalty
            scores = scores.where(~self._seen, weaker.where(scores > 0, stronger))
        if sampling.frequency_penalty or sampling.presence_penalty:
            if self._counts is None:
                self._counts = scores.new_zeros(scores.shape)
            scores = scores - sampling.frequency_penalty * self._counts
            scores = scores - sampling.presence_penalty * (self._counts > 0)
        return scores

    def _count(self, token: int) -> None:
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1

    def _draw(self, scores: Foreign) -> int:
        sampling = self._sampling
        scores = scores / sampling.temperature
        if sampling.min_p:
            least = scores.max() + _log(scores, sampling.min_p)
            scores = scores.masked_fill(scores < least, -float("inf"))
        tokens = None
        if 0 < sampling.top_k < len(scores):
            scores, tokens = scores.topk(sampling.top_k)
        chances = scores.softmax(-1)
        if sampling.top_p < 1:
            chances, order = _nucleus(chances, sampling.top_p)
            tokens = order if tokens is None else tokens[order]
        sums = chances.double().cumsum(-1)  # torch.multinomial takes 500 times as long on CPUs
        place = min(self._place(sums), len(sums) - 1)
        return place if tokens is None else int(tokens[place])

    def _place(self, sums: Foreign) -> int:
        """Return where a random number falls among the sums of chances."""
        import torch

        if self._random is None and self._sampling.seed is not None:
            self._random = torch.Generator(sums.device).manual_seed(self._sampling.seed)
        at = torch.rand(1, generator=self._random, device=sums.device, dtype=sums.dtype)
        return int(torch.searchsorted(sums, at * sums[-1], right=True))


def _nucleus(chances: Foreign, top_p: float) -> tuple[Foreign, Foreign]:
    """Return the fewest chances that make `top_p` together, and where they were."""
    for many in (*FIRST_LOOKS, len(chances)):
        likely, order = chances.topk(min(many, len(chances)))
        sums = likely.cumsum(-1)
        if sums[-1] >= top_p or len(likely) == len(chances):
            break
    count = max(1, int((sums - likely < top_p).sum()))
    return likely[:count], order[:count]


def _ends_with(made: Sequence[int], word: Sequence[int]) -> bool:
    return not word or tuple(made[-len(word) :]) == tuple(word)


def _log(like: Foreign, value: float) -> Foreign:
    return like.new_tensor(value).log()


def _truth(like: Foreign) -> Foreign:
    """Return torch's type of truth values."""
    return (like > 0).dtype
