"""Read-write policies as tensors: how many encoder frames may each text position see?

This is the one idea that carries the project. The training mask, the attention kernel's only mask argument, the
incremental decoder and the latency of a token are all read from the same tensor

    visible: int32 (B, U)     visible[b, u] <= encoder_lengths[b]

and training and decoding obtain it from the same functions below. Letters: B batch, U text positions, F encoder
frames, K wait-k lagging, L pre-decision ratio (frames per written token).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def answer_index(mask: Tensor, prompt_lengths: Tensor, seen: Tensor | int = 0) -> Tensor:
    """Which answer token does each text position predict?

    The last prompt token predicts answer token 0, so it carries 0; earlier prompt positions are negative. Counting
    real positions (rather than columns) makes the answer independent of left or right padding.

    Args:
        mask: (B, U) bool, true at real text positions.
        prompt_lengths: (B,) number of prompt tokens.
        seen: (B,) or int, how many real positions were consumed in earlier incremental calls.

    Returns:
        (B, U) int64; the value at padding positions has no meaning.
    """
    if isinstance(seen, int):
        seen = torch.full_like(prompt_lengths, seen)
    return mask.cumsum(1) + (seen - prompt_lengths)[:, None]


def offline(index: Tensor, mask: Tensor, encoder_lengths: Tensor) -> Tensor:
    """Every real text position sees the whole utterance.

    Args:
        index: (B, U) from :func:`answer_index`.
        mask: (B, U) bool, true at real text positions.
        encoder_lengths: (B,) true number of frames.

    Returns:
        visible (B, U) int32.
    """
    everything = encoder_lengths[:, None].expand_as(index)
    return torch.where(mask, everything, 0).to(torch.int32)


def wait_k_frames[Index: (int, Tensor)](index: Index, k: Index, step: int) -> Index:
    """(n + K) * L: the frames that answer token n sees, if there are so many."""
    return (index + k) * step


@dataclass(frozen=True)
class Chunks:
    """How many frames a streaming encoder makes at once.

    A token that may see the first frame of a chunk sees the last one too: a session has waited for both.

    Attributes:
        size: frames per chunk.
        lead: frames that come with the first chunk, before its own.
    """

    size: int = 1
    lead: int = 0

    def whole(self, frames: int) -> int:
        """How many frames there are as soon as there are ``frames``."""
        return self.lead + max(1, -(-(frames - self.lead) // self.size)) * self.size if frames > 0 else 0

    def show(self, visible: Tensor, encoder_lengths: Tensor) -> Tensor:
        """What becomes visible (B, U) where ``visible`` (B, U) was waited for; encoder_lengths (B,)."""
        chunks = (visible - self.lead + self.size - 1).div(self.size, rounding_mode="floor").clamp(min=1)
        whole = (self.lead + chunks * self.size).minimum(encoder_lengths[:, None])
        return torch.where(visible > 0, whole, 0).to(torch.int32)


def wait_k(index: Tensor, mask: Tensor, encoder_lengths: Tensor, k: Tensor, step: int) -> Tensor:
    """Answer token n sees min(encoder_length, (n + K) * L) frames; prompt positions before the last see none.

    Args:
        index: (B, U) from :func:`answer_index`.
        mask: (B, U) bool, true at real text positions.
        encoder_lengths: (B,) true number of frames; clamping to it keeps padding frames out of sight.
        k: (B,) lagging K of each utterance, or (1,) for all.
        step: L, frames per written token.

    Returns:
        visible (B, U) int32.
    """
    reach = wait_k_frames(index, k[:, None], step).minimum(encoder_lengths[:, None])
    return torch.where(mask & (index >= 0), reach, 0).to(torch.int32)


class Rule(Protocol):
    """A policy with everything drawn: a pure function of positions and lengths."""

    def __call__(self, index: Tensor, mask: Tensor, encoder_lengths: Tensor) -> Tensor: ...


class Policy(Protocol):
    """Named in the YAML as ``policy``; ``rule(B)`` fixes what is random for one batch."""

    def rule(self, batch: int, device: torch.device | None = None) -> Rule: ...

    def reach(self, tokens: int) -> int | None:
        """Frames that answers of so many tokens can see at most, whatever is drawn; None: any number."""
        ...


class OfflinePolicy:
    """``policy: offline``."""

    def rule(self, batch: int, device: torch.device | None = None) -> Rule:
        """Nothing is random here."""
        return offline

    def reach(self, tokens: int) -> None:
        """No bound."""


@dataclass(frozen=True)
class _WaitKRule:
    k: Tensor  # (B,) or (1,)
    step: int

    def __call__(self, index: Tensor, mask: Tensor, encoder_lengths: Tensor) -> Tensor:
        return wait_k(index, mask, encoder_lengths, self.k, self.step)


class WaitKPolicy:
    """``policy: wait_k``: K is drawn per utterance from an inclusive range.

    Args:
        k: a number, or [low, high] with both ends included (the paper trains with 3 to 12).
        step: L, encoder frames per written token.
    """

    def __init__(self, k: int | Sequence[int] = (3, 12), step: int = 4):
        low, high = (k, k) if isinstance(k, int) else tuple(k)
        if not 1 <= low <= high:
            raise ValueError(f"wait_k: k={k} must be a number >= 1 or [low, high] with 1 <= low <= high")
        if step < 1:
            raise ValueError(f"wait_k: step={step} must be >= 1")
        self.low, self.high, self.step = low, high, step

    def rule(self, batch: int, device: torch.device | None = None) -> Rule:
        """Draws K for each of ``batch`` utterances from torch's global generator."""
        if self.low == self.high:
            # One K for all rows, however many of them (beams multiply rows).
            return _WaitKRule(torch.tensor([self.low], device=device), self.step)
        return _WaitKRule(torch.randint(self.low, self.high + 1, (batch,), device=device), self.step)

    def reach(self, tokens: int) -> int:
        """What the last token sees under the largest K."""
        return wait_k_frames(tokens - 1, self.high, self.step)


@dataclass(frozen=True)
class InChunks:
    """A policy for an encoder whose frames come by the chunk: what training must know to see what sessions show."""

    policy: Policy
    chunks: Chunks

    def rule(self, batch: int, device: torch.device | None = None) -> Rule:
        """The policy's, with whole chunks."""
        rule = self.policy.rule(batch, device)
        return lambda index, mask, lengths: self.chunks.show(rule(index, mask, lengths), lengths)

    def reach(self, tokens: int) -> int | None:
        """The policy's, with whole chunks."""
        reach = self.policy.reach(tokens)
        return None if reach is None else self.chunks.whole(reach)


@dataclass(frozen=True)
class BehindSilence:
    """A policy that begins where speech does, as training knows: whoever had to write before would learn to guess.

    Attributes:
        policy: which counts frames.
        silence: (B,) frames before speech, not counted.
    """

    policy: Policy
    silence: Tensor

    def rule(self, batch: int, device: torch.device | None = None) -> Rule:
        """The policy's, so many frames later."""
        rule = self.policy.rule(batch, device)

        def later(index: Tensor, mask: Tensor, encoder_lengths: Tensor) -> Tensor:
            visible = rule(index, mask, encoder_lengths)
            shown = (visible + self.silence[:, None]).minimum(encoder_lengths[:, None])
            return torch.where(visible > 0, shown, 0).to(torch.int32)

        return later

    def reach(self, tokens: int) -> int | None:
        """The policy's, so many frames later."""
        reach = self.policy.reach(tokens)
        return None if reach is None else reach + int(self.silence.max())


def causal_mask(mask: Tensor, new: int) -> Tensor:
    """Which of N positions may each of the ``new`` last ones attend to?

    Padding rows attend to themselves only, so that no row is empty (an empty softmax is NaN).

    Args:
        mask: (B, N) bool, true at real positions, old and new.
        new: U, how many of them are new.

    Returns:
        (B, U, N) bool.
    """
    total = mask.shape[1]
    column = torch.arange(total, device=mask.device)
    row = column[total - new :, None]
    return ((column < row) & mask[:, None, :]) | (column == row)
