"""One chunk of the cache-aware FastConformer for many streams at once, each at a position of its own.

The library streams too, but its cache belongs to one stream or to streams in step with each other, and it projects the
positions of the whole window again at every chunk. Here keys, values and the inputs of all convolutions are kept, and
what depends on the weights alone is computed once.

The sub-sampling does the same amount of work for all streams of a step, the first and last chunks included: the seven
feature frames before the first chunk and those after the end of the audio are zeros, and what the sub-sampling makes of
them is put back to zero after every stage, which is what padding is in the full pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from espnet_bestow.encoders.causal_subsampling import NativeStages, Stages, subsampled
from espnet_bestow.encoders.depthwise import convolve_frames
from espnet_bestow.encoders.encoder_state import EncoderState, KeysValues
from espnet_bestow.encoders.few_rows import FewRowsLinear
from espnet_bestow.ops import native, or_empty, weight_and_bias

FACTOR = 8
"""Feature frames per encoder frame."""

LEAD = FACTOR - 1
"""Feature frames of a chunk before the one that its first frame ends with."""


class ChunkStep:
    """Encodes chunk by chunk what :class:`StreamingFastConformerEncoder` encodes at once.

    Args:
        encoder: the transformers encoder. Its weights are those of the moment: after training or moving it, make
            another ChunkStep.
        stages: its sub-sampling.
        context: (left, right) in frames.
    """

    def __init__(self, encoder: Any, stages: Stages | NativeStages, context: tuple[int, int]):
        self.left = context[0]
        self.chunk = context[1] + 1
        self.width = encoder.config.hidden_size
        self.scale = encoder.input_scale
        self.stages = stages
        with torch.inference_mode():
            window = torch.zeros(1, self.left + self.chunk, self.width, device=encoder.device, dtype=encoder.dtype)
            # Distances from left + chunk - 1 down to -(chunk - 1), (left + 2 chunk - 1, D).
            distances = encoder.encode_positions(window)[0, : self.left + 2 * self.chunk - 1]
            self.blocks = [_Block(block, distances, self.left, self.chunk) for block in encoder.layers]
            laid_out = [block.weights() for block in self.blocks]
        every = [weight for weights in laid_out if weights is not None for weight in weights]
        self._weights = None if None in laid_out else every
        # Room for several chunks: keys and values are copied once in so many steps.
        self.spare = max(self.left // 2, self.chunk)
        self._nothing = self._silence(window)

    @property
    def in_one_call(self) -> bool:
        """Whether the blocks of a chunk are one native call."""
        return self._weights is not None and native is not None

    def open(self) -> EncoderState:
        """The state of a stream that has heard nothing."""
        return self._nothing

    def features(self, start: int) -> tuple[int, int]:
        """First and past-the-last feature frame of the chunk at frame ``start``; the first may be negative."""
        return FACTOR * start - LEAD, FACTOR * (start + self.chunk) - LEAD

    def frames_of(self, features: int) -> int:
        """Encoder frames of audio with so many feature frames."""
        return subsampled(features) if features else 0

    @torch.inference_mode()
    def __call__(
        self, feats: Tensor, states: Sequence[EncoderState], ends: Sequence[int | None]
    ) -> tuple[Tensor, list[EncoderState]]:
        """The next chunk of every stream.

        Args:
            feats: (B, 8 chunk, 80) feature frames, those of :meth:`features`, with 0 where there are none.
            states: of the B streams.
            ends: feature frames of the whole audio where it has ended, else None.

        Returns:
            frames (B, chunk, D), of which those after the end mean nothing, and the new states.
        """
        starts = [state.start for state in states]
        x, past = self.stages.advance(feats, torch.stack([state.past for state in states]), starts, ends)
        memories = [state.with_room(self.left, self.chunk, self.spare) for state in states]
        # What each chunk attends to: all that is left of the past, the chunk, and nothing behind the end.
        kept = [min(self.left, end) for _, end in memories]
        windows = [
            memory.frames[:, end - before : end + self.chunk]
            for (memory, end), before in zip(memories, kept, strict=True)
        ]
        seen = [
            before + self.chunk if last is None else max(min(before + self.chunk, subsampled(last) - start + before), 1)
            for before, start, last in zip(kept, starts, ends, strict=True)
        ]
        encode = self._encode_block_by_block if self._weights is None or native is None else self._encode
        x, convolved = encode(x * self.scale, windows, seen, [state.convolved for state in states])
        after = []
        for start, (memory, end), inputs, of_convolutions in zip(starts, memories, past, convolved, strict=True):
            memory.filled = end + self.chunk
            after.append(EncoderState(start + self.chunk, inputs.clone(), of_convolutions, memory, memory.filled))
        return x, after

    def _silence(self, like: Tensor) -> EncoderState:
        """What a stream remembers before it has heard anything."""
        convolved = like.new_zeros(len(self.blocks), self.blocks[0].kernel - 1, self.width)
        memory = KeysValues(like.new_zeros(len(self.blocks), 0, 2 * self.width), 0)
        return EncoderState(0, like.new_zeros(self.stages.remembered), convolved, memory, 0)

    def _encode(
        self, x: Tensor, windows: list[Tensor], seen: list[int], past: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """All blocks in one native call.

        Args:
            x: (B, chunk, D).
            windows: per stream (blocks, n, 2 D) keys and values; those of the chunk, the last ones, are written.
            seen: how many of these n the stream's frames attend to.
            past: per stream (blocks, kernel - 1, D), the last inputs of the convolutions.

        Returns:
            (B, chunk, D) and past afterwards.
        """
        assert native is not None and self._weights is not None
        block, size = self.blocks[0], self.left + self.chunk
        after = [torch.empty_like(each) for each in past]
        y = native.conformer_chunk(
            x.flatten(0, 1), torch.tensor([self.chunk] * len(x)), self._weights, windows, torch.tensor(seen), past,
            after, block.heads, size, size + self.chunk - 1, block.block.norm_out.eps, block.scaling,
        )  # fmt: skip
        return y.view(x.shape), after

    def _encode_block_by_block(
        self, x: Tensor, windows: list[Tensor], seen: list[int], past: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """See :meth:`_encode`."""
        size = self.left + self.chunk
        lengths = [window.shape[1] for window in windows]
        shared = torch.stack([F.pad(w, (0, 0, size - n, 0)) for w, n in zip(windows, lengths, strict=True)], 1)
        first = torch.tensor([size - n for n in lengths], device=x.device)  # (B,)
        column = torch.arange(size, device=x.device) - first[:, None]  # (B, left + chunk)
        outside = (column < 0) | (column >= torch.tensor(seen, device=x.device)[:, None])
        mask = torch.zeros_like(outside, dtype=x.dtype).masked_fill(outside, -torch.inf)[:, None, None]
        kept = []
        for number, block in enumerate(self.blocks):
            x, inputs = block(x, shared[number], torch.stack([each[number] for each in past]), mask)
            kept.append(inputs)
        for window, every in zip(windows, shared.unbind(1), strict=True):
            window[:, -self.chunk :] = every[:, -self.chunk :]
        return x, [each.clone() for each in torch.stack(kept, 1)]


class _Block:
    """One conformer block with its weights laid out for a chunk of few frames."""

    def __init__(self, block: Any, distances: Tensor, left: int, chunk: int):
        attention = block.self_attn
        self.block = block
        self.left = left
        self.chunk = chunk
        self.heads = attention.bias_u.shape[0]
        self.scaling = attention.scaling
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        has_bias = attention.q_proj.bias is not None
        self.qkv = FewRowsLinear(
            torch.cat([each.weight for each in projections]),
            torch.cat([each.bias for each in projections]) if has_bias else None,
        )
        self.out = _few_rows(attention.o_proj)
        self.feed_forward1 = _FeedForward(block.feed_forward1)
        self.feed_forward2 = _FeedForward(block.feed_forward2)
        self.pointwise1 = _few_rows(block.conv.pointwise_conv1)
        self.pointwise2 = _few_rows(block.conv.pointwise_conv2)
        self.bias_u = attention.bias_u.flatten().clone()
        self.bias_v = attention.bias_v.flatten().clone()
        # (H, d, distances), already divided by sqrt(d).
        relative = attention.relative_k_proj(distances[None])[0].unflatten(-1, (self.heads, -1))
        self.relative = (relative * self.scaling).permute(1, 2, 0).contiguous()
        depthwise = block.conv.depthwise_conv
        self.kernel = depthwise.kernel_size[0]
        self.taps = depthwise.weight[:, 0].t().contiguous()  # (kernel, D)
        self.depthwise = depthwise

    def __call__(self, x: Tensor, window: Tensor, past: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The block's frames and the last inputs of its convolution.

        Args:
            x: (B, chunk, D).
            window: (B, left + chunk, 2 D) keys and values; those of the chunk are written into it.
            past: (B, kernel - 1, D) earlier inputs of the convolution.
            mask: (B, 1, 1, left + chunk) or None.
        """
        block = self.block
        x = x.add(self.feed_forward1(block.norm_feed_forward1(x)), alpha=0.5)
        x = x + self._attend(block.norm_self_att(x), window, mask)
        convolved, past = self._convolve(block.norm_conv(x), past)
        x = x + convolved
        x = x.add(self.feed_forward2(block.norm_feed_forward2(x)), alpha=0.5)
        return block.norm_out(x), past

    def weights(self) -> list[Tensor] | None:
        """As the native call wants them, from the first norm to the last; None where it does not take them."""
        block, first, second = self.block, self.feed_forward1, self.feed_forward2
        activations = block.conv.activation, first.activation, second.activation
        if not all(isinstance(each, nn.SiLU | SiLUActivation) for each in activations):
            return None
        taps = [self.taps, or_empty(self.depthwise.bias)]
        norms = (
            block.norm_feed_forward1,
            block.norm_self_att,
            block.norm_conv,
            block.conv.norm,
            block.norm_feed_forward2,
        )
        first_norm, own_norm, conv_norm, inner_norm, second_norm = map(weight_and_bias, norms)
        found = [
            *first_norm, *_panels(first.linear1), *_panels(first.linear2),
            *own_norm, *_panels(self.qkv), self.bias_u, self.bias_v, self.relative, *_panels(self.out),
            *conv_norm, *_panels(self.pointwise1), *taps, *inner_norm, *_panels(self.pointwise2),
            *second_norm, *_panels(second.linear1), *_panels(second.linear2), *weight_and_bias(block.norm_out),
        ]  # fmt: skip
        return None if any(each is None for each in found) else [each.detach() for each in found if each is not None]

    def _attend(self, x: Tensor, window: Tensor, mask: Tensor | None) -> Tensor:
        B, c, D = x.shape
        W, H = self.left + c, self.heads
        qkv = self.qkv(x)  # (B, c, 3 D)
        window[:, self.left :] = qkv[..., D:]
        keys, values = window.unflatten(2, (2, H, -1)).permute(2, 0, 3, 1, 4)  # (B, H, W, d) each
        query = qkv[..., :D]
        by_place = (query + self.bias_v).reshape(B * c, H, -1).transpose(0, 1)  # (H, B c, d)
        scores = torch.bmm(by_place, self.relative)  # (H, B c, W + c - 1)
        # Query i finds its distance to key j in column c - 1 - i + j: a view with rows one shorter.
        P = scores.shape[-1]
        bias = scores.as_strided((B, H, c, W), (c * P, B * c * P, P - 1, 1), c - 1)
        if mask is not None:
            bias = bias + mask
        content = (query + self.bias_u).unflatten(2, (H, -1)).transpose(1, 2)  # (B, H, c, d)
        out = F.scaled_dot_product_attention(content, keys, values, bias, scale=self.scaling)
        return self.out(out.transpose(1, 2).reshape(B, c, D))

    def _convolve(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        conv = self.block.conv
        x = F.glu(self.pointwise1(x))
        window = torch.cat([past, x], dim=1)  # (B, kernel - 1 + c, D)
        if x.numel() <= FEW:
            # (B, c, kernel, D) views of the window: cheaper than any convolution.
            x = (window.unfold(1, self.kernel, 1).transpose(2, 3) * self.taps).sum(2)
            x = x if self.depthwise.bias is None else x + self.depthwise.bias
        else:
            x = convolve_frames(window, self.depthwise.weight, self.depthwise.bias)
        x = conv.activation(conv.norm(x))
        return self.pointwise2(x), window[:, self.chunk :]


FEW = 1 << 15
"""Numbers up to which a depthwise convolution is a product of windows."""


class _FeedForward:
    """linear, activation, linear."""

    def __init__(self, module: Any):
        self.linear1 = _few_rows(module.linear1)
        self.linear2 = _few_rows(module.linear2)
        self.activation = module.activation

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear2(self.activation(self.linear1(x)))


def _panels(linear: FewRowsLinear) -> list[Tensor | None]:
    return [linear.panels, or_empty(linear.bias)]


def _few_rows(module: Any) -> FewRowsLinear:
    """Of a Linear or of a convolution of kernel 1."""
    return FewRowsLinear(module.weight.flatten(1), module.bias)
