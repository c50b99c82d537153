"""A session's next token as one CUDA graph: on a GPU the step is many small kernels, and launching them is its time.

A graph repeats recorded kernels on the same memory. Seats make that easy: their buffers stay where they are, and a step
differs from the next one only in what it is given and in the slots it writes to. A graph therefore reads all slots that
the buffers have, of which ``visible`` and the slots let each seat see its own; once they grow, it is recorded again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espnet_bestow.connectors.cross_attention import CrossAttentionConnector
from espnet_bestow.connectors.seated import SeatedCrossAttentionState
from espnet_bestow.seats import Placement


@dataclass
class _Recorded:
    at: Placement  # its slots are filled in before each run
    text: Tensor  # (B, 1, D_llm)
    visible: Tensor  # (B, 1) int32
    memory: tuple[int, ...]  # where the buffers were
    run: Callable[[], Tensor]


class GraphedStep:
    """A cross-attention connector's step for one new token of each of the seats 0 ... B - 1.

    Args:
        connector: in eval mode.
        state: its seats; longer steps, such as prompts, go through ``connector`` as ever.
    """

    def __init__(self, connector: CrossAttentionConnector, state: SeatedCrossAttentionState):
        self.connector = connector
        self.state = state
        self._recorded: dict[int, _Recorded] = {}  # by B

    @torch.inference_mode()
    def __call__(self, text: Tensor, visible: Tensor, at: Placement) -> Tensor:
        """One step.

        Args:
            text: (B, 1, D_llm) embeddings of the new tokens.
            visible: (B, 1) int32.
            at: where they go, from :meth:`Seats.place`.

        Returns:
            (B, 1, D_llm) that have read the speech; the next call overwrites it.
        """
        if not at.leading or at.slots.shape[1] != 1:
            seats, slots = at.seats, tuple(at.slots.shape)
            raise ValueError(f"a graphed step is one token of the seats 0, 1, ...; got {seats=} with {slots=}")
        memory = self.state.reserve(at)
        step = self._recorded.get(len(at.seats))
        if step is None or step.memory != memory:
            step = self._recorded[len(at.seats)] = self._record(text, visible, at, memory)
        step.at.slots.copy_(at.slots)
        step.text.copy_(text)
        step.visible.copy_(visible)
        return step.run()

    def _record(self, text: Tensor, visible: Tensor, at: Placement, memory: tuple[int, ...]) -> _Recorded:
        at = replace(at, slots=at.slots.clone(), single=None)
        text, visible, mask = text.clone(), visible.clone(), torch.ones_like(visible, dtype=torch.bool)

        def run() -> Tensor:
            self.state.sit_with_spare(at)
            return self.connector(text, mask, visible, self.state).embeddings

        return _Recorded(at, text, visible, memory, recorded(run, text.device))


def recorded[T](run: Callable[[], T], device: torch.device) -> Callable[[], T]:
    """``run`` as a graph; where there are no graphs, ``run`` itself."""
    if device.type != "cuda":
        return run
    # Libraries set themselves up in the first runs, which a recording must not see.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> T:
        graph.replay()
        return out

    return replay
