"""The two attentions of a BESTOW block, each with its cache."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_bestow.ops import Linear, staircase_attention, staircase_weights


class TextCache(Protocol):
    """Keys and values of text, growing."""

    def extend(self, keys: Tensor, values: Tensor) -> "TextMemory":
        """All that there are, once those of U newer positions, (B, H, U, D) each, are in."""
        ...


class TextMemory(TextCache, Protocol):
    """What positions of a text read earlier ones from."""

    def look_back(self, q: Tensor, allowed: Tensor | None) -> Tensor:
        """q (B, H, U, D) of the newest U of N positions, allowed (B, U, N) or None for all -> (B, H, U, D)."""
        ...


class SpeechMemory(Protocol):
    """What queries read speech from."""

    def attend(self, q: Tensor, visible: Tensor) -> Tensor:
        """q (B', H, U, D), visible (B', U) -> (B', H, U, D)."""
        ...


@dataclass
class KeysValues:
    """Projected keys and values of one attention layer, (B, H, N, D) each."""

    keys: Tensor
    values: Tensor

    def extend(self, keys: Tensor, values: Tensor) -> "KeysValues":
        """Appends newer positions."""
        return KeysValues(torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2))

    def select(self, rows: Tensor) -> "KeysValues":
        """Keeps the given batch rows."""
        return KeysValues(self.keys.index_select(0, rows), self.values.index_select(0, rows))

    def watched(self) -> "WatchedSpeech":
        """The same, remembering how it is attended to."""
        return WatchedSpeech(self.keys, self.values)

    def look_back(self, q: Tensor, allowed: Tensor | None) -> Tensor:
        """Attention within a text; see :class:`TextMemory`."""
        mask = None if allowed is None else allowed[:, None]
        return F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask)

    def attend(self, q: Tensor, visible: Tensor) -> Tensor:
        """Attention from text to these keys and values of speech, through the staircase that ``visible`` describes.

        Several text rows may share one utterance (beams, or several instructions for one recording): with B' = G * B
        rows, rows b*G ... b*G + G - 1 read utterance b. They become additional query rows, so that keys and values
        are neither copied nor computed twice.

        Args:
            q: (B', H, U, D).
            visible: (B', U) int32.

        Returns:
            (B', H, U, D)
        """
        rows, _, positions, _ = q.shape
        utterances = self.keys.shape[0]
        if rows != utterances:
            q = q.unflatten(0, (utterances, -1)).transpose(1, 2).flatten(2, 3)  # (B, H, G*U, D)
            visible = visible.reshape(utterances, -1)
        out = staircase_attention(q, self.keys, self.values, visible)
        if rows != utterances:
            out = out.unflatten(2, (-1, positions)).transpose(1, 2).flatten(0, 1)
        return out


class WatchedSpeech(KeysValues):
    """Keys and values of speech that remember how they were last attended to; one text row per utterance."""

    query: Tensor
    visible: Tensor

    def attend(self, q: Tensor, visible: Tensor) -> Tensor:
        """See :class:`KeysValues`."""
        self.query, self.visible = q, visible
        return super().attend(q, visible)

    def weights(self) -> Tensor:
        """Attention of every position of the last call, (B, H, U, F), with its gradient."""
        return staircase_weights(self.query, self.keys, self.visible)


@runtime_checkable
class AttendingState(Protocol):
    """What a connector that ``attends`` remembers."""

    def watch(self) -> WatchedSpeech:
        """From now on one of its attentions remembers how speech is attended to."""
        ...


class MultiHeadProjections(nn.Module):
    """Query, key, value and output projections shared by both attentions.

    Args:
        dim: D of queries and output.
        num_heads: H.
        memory_dim: width of what keys and values are made of (default: ``dim``).
    """

    def __init__(self, dim: int, num_heads: int, memory_dim: int | None = None):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.query = Linear(dim, dim)
        self.key = Linear(memory_dim or dim, dim)
        self.value = Linear(memory_dim or dim, dim)
        self.out = Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, H*D) -> (B, H, N, D)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """(B, H, N, D) -> (B, N, H*D)."""
        return x.transpose(1, 2).flatten(2)

    def keys_values(self, memory: Tensor) -> KeysValues:
        """Projects memory (B, N, D) once."""
        return KeysValues(self.split(self.key(memory)), self.split(self.value(memory)))


def initialize(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in every Linear below ``module``.

    PyTorch's own default draws a third of this variance, and attention to speech emerges later from it.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)


class CausalSelfAttention(MultiHeadProjections):
    """Each text position sees itself and the real positions before it. No position information, as in the paper."""

    def forward(self, x: Tensor, past: TextCache, allowed: Tensor | None) -> tuple[Tensor, TextMemory]:
        """Attends from U new positions to all N positions so far.

        Args:
            x: (B, U, D) normalised input.
            past: keys and values of the N - U earlier positions.
            allowed: (B, U, N) bool, which of them each new position sees; None: all.

        Returns:
            (B, U, D), and the cache with the new positions appended.
        """
        now = self.keys_values(x)
        cache = past.extend(now.keys, now.values)
        return self.out(self.merge(cache.look_back(self.split(self.query(x)), allowed))), cache


class CrossAttention(MultiHeadProjections):
    """Text queries read un-normalised speech through the staircase that ``visible`` describes."""

    def forward(self, x: Tensor, speech: SpeechMemory, visible: Tensor) -> Tensor:
        """Attends from text to speech.

        Args:
            x: (B', U, D) normalised text.
            speech: what to read.
            visible: (B', U) int32.

        Returns:
            (B', U, D)
        """
        return self.out(self.merge(speech.attend(self.split(self.query(x)), visible)))
