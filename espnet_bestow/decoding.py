"""Writing answers: greedy, beam search and sampling over one cached, batched stepper.

Speech keys and values are computed once per utterance; every further token costs one row of connector and LLM,
whatever the length of the audio.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from espnet_bestow.circles import CIRCLES, circling
from espnet_bestow.connectors import Speech
from espnet_bestow.model import BestowModel, ModelState
from espnet_bestow.visibility import Rule, answer_index, offline


@dataclass
class Hypothesis:
    """One answer."""

    ids: list[int] = field(default_factory=list)  # without the end token
    score: float = 0.0  # sum of log-probabilities, the end token's included
    ended: bool = False  # whether the end token was written (False: cut at the length limit, or went in circles)


class Stepper:
    """Feeds a batch through the model token by token.

    Args:
        model: the model, in eval mode.
        speech: B encoded utterances.
        prompts: B instructions as token ids; lengths may differ.
        rule: which frames each position sees.
    """

    def __init__(self, model: BestowModel, speech: Speech, prompts: Sequence[Sequence[int]], rule: Rule = offline):
        self.model = model
        self.rule = rule
        self.state: ModelState = model.start(speech)
        device = speech.frames.device
        self.encoder_lengths = speech.lengths.to(device)  # (B',)
        self.prompt_lengths = torch.tensor([len(p) for p in prompts], device=device)  # (B',)
        self.seen = torch.zeros_like(self.prompt_lengths)  # (B',) real positions so far
        # Left padding aligns the rows where they start to write.
        width = int(self.prompt_lengths.max())
        padded = [[0] * (width - len(p)) + list(p) for p in prompts]
        mask = torch.arange(width, device=device) >= (width - self.prompt_lengths)[:, None]
        self.logp = self._advance(torch.tensor(padded, device=device), mask)  # (B', V)

    def write(self, tokens: Tensor) -> None:
        """Appends one token (B',) to every row; ``logp`` then holds the next one's log-probabilities."""
        ids = tokens[:, None]
        self.logp = self._advance(ids, torch.ones_like(ids, dtype=torch.bool))

    def repeat(self, times: int) -> None:
        """Each row ``times`` times in a row, sharing its utterance's speech."""
        rows = torch.arange(len(self.logp), device=self.logp.device).repeat_interleave(times)
        self.select(rows)
        for name in ("encoder_lengths", "prompt_lengths", "seen", "logp"):
            setattr(self, name, getattr(self, name).index_select(0, rows))

    def select(self, rows: Tensor) -> None:
        """Rearranges rows (B',) within their utterances."""
        self.state = self.state.select(rows)

    def _advance(self, ids: Tensor, mask: Tensor) -> Tensor:
        index = answer_index(mask, self.prompt_lengths, self.seen)
        visible = self.rule(index, mask, self.encoder_lengths)
        self.seen = self.seen + mask.sum(1)
        return self.model.step(ids, mask, visible, self.state, keep=1)[:, -1].log_softmax(-1)


class Search(Protocol):
    """How tokens are chosen."""

    def __call__(self, stepper: Stepper, end: int, max_tokens: int) -> list[list[Hypothesis]]:
        """N-best lists, best first, one per utterance."""
        ...


class Greedy:
    """The most probable token at every step.

    Args:
        circles: how often one, two, three, ... tokens may follow themselves; beyond that they are said once, and last.
    """

    def __init__(self, circles: Sequence[int] = CIRCLES):
        self.circles = circles

    def __call__(self, stepper: Stepper, end: int, max_tokens: int) -> list[list[Hypothesis]]:
        """See :class:`Search`."""
        return _one_by_one(stepper, end, max_tokens, lambda logp: logp.argmax(-1), self.circles)


class Sampling:
    """Draws tokens.

    Args:
        temperature: below 1 sharpens.
        top_k: draw from the k most probable tokens only; 0 is all.
        top_p: draw from the smallest set of tokens that holds this probability.
        seed: the draw is a function of it.
        circles: see :class:`Greedy`.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        circles: Sequence[int] = CIRCLES,
    ):
        if temperature <= 0.0:
            raise ValueError(f"sampling: temperature={temperature} must be > 0")
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"sampling: top_p={top_p} must be in (0, 1]")
        self.temperature, self.top_k, self.top_p, self.seed = temperature, top_k, top_p, seed
        self.circles = circles

    def __call__(self, stepper: Stepper, end: int, max_tokens: int) -> list[list[Hypothesis]]:
        """See :class:`Search`."""
        generator = torch.Generator(stepper.logp.device).manual_seed(self.seed)

        def draw(logp: Tensor) -> Tensor:
            return torch.multinomial(self.probabilities(logp), 1, generator=generator)[:, 0]

        return _one_by_one(stepper, end, max_tokens, draw, self.circles)

    def probabilities(self, logp: Tensor) -> Tensor:
        """logp (B, V) -> (B, V) after temperature, top-k and top-p."""
        p = (logp / self.temperature).softmax(-1)
        ordered, order = p.sort(-1, descending=True)
        drop = ordered.cumsum(-1) - ordered >= self.top_p  # the first token always stays
        if self.top_k > 0:
            drop[:, self.top_k :] = True
        p = p.scatter(1, order, ordered.masked_fill(drop, 0.0))
        return p / p.sum(-1, keepdim=True)


class Beam:
    """Beam search; finished hypotheses compete by score / length ** length_penalty.

    Args:
        size: hypotheses kept per utterance.
        length_penalty: 0 compares plain scores (prefers short), 1 the mean per token.
    """

    def __init__(self, size: int = 5, length_penalty: float = 1.0):
        if size < 1:
            raise ValueError(f"beam: size={size} must be >= 1")
        self.size, self.length_penalty = size, length_penalty

    def __call__(self, stepper: Stepper, end: int, max_tokens: int) -> list[list[Hypothesis]]:
        """See :class:`Search`."""
        size, device = self.size, stepper.logp.device
        batch = stepper.logp.shape[0]
        stepper.repeat(size)
        # All beams of an utterance start equal: only the first may be extended in the first step.
        scores = torch.full((batch, size), -torch.inf, device=device)
        scores[:, 0] = 0.0
        written = torch.zeros(batch * size, 0, dtype=torch.long, device=device)
        finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
        unsettled = set(range(batch))  # the others have what they would have alone: nothing is added to it
        offset = torch.arange(batch, device=device)[:, None] * size
        for length in range(1, max_tokens + 1):
            total = (scores[..., None] + stepper.logp.unflatten(0, (batch, size))).flatten(1)  # (B, size * V)
            vocabulary = stepper.logp.shape[-1]
            best, flat = total.topk(min(2 * size, total.shape[1]), -1)  # half of them may be endings
            beam, token = flat // vocabulary, flat % vocabulary
            rows = (offset + beam).tolist()
            for b in unsettled:
                for score, t, row in zip(best[b, :size].tolist(), token[b, :size].tolist(), rows[b], strict=False):
                    if t == end and score > -torch.inf:
                        finished[b].append(Hypothesis(written[row].tolist(), score, ended=True))
            alive = best.masked_fill(token == end, -torch.inf)
            scores, pick = alive.topk(size, -1)
            source = (offset + beam.gather(1, pick)).flatten()
            chosen = token.gather(1, pick).flatten()
            written = torch.cat([written.index_select(0, source), chosen[:, None]], 1)
            unsettled = {b for b in unsettled if not self._settled(finished[b], float(scores[b].max()), length)}
            if length == max_tokens or not unsettled:
                break
            stepper.select(source)
            stepper.write(chosen)
        for b in range(batch):
            if len(finished[b]) < size:
                open_rows = zip(scores[b].tolist(), written.unflatten(0, (batch, size))[b].tolist(), strict=True)
                finished[b] += [Hypothesis(ids, s) for s, ids in open_rows if s > -torch.inf]
            # An answer that ended is preferred to one that was cut, whatever their scores.
            finished[b].sort(key=lambda h: (h.ended, self.rank(h.score, len(h.ids) + h.ended)), reverse=True)
        return [f[:size] for f in finished]

    def rank(self, score: float, length: int) -> float:
        """What hypotheses compete by."""
        return score / max(length, 1) ** self.length_penalty

    def _settled(self, finished: list[Hypothesis], best: float, length: int) -> bool:
        """Enough endings, and no open beam could beat the worst kept one if it ended now.

        Every further token costs, so a beam of score ``best`` and ``length`` tokens ranks at most
        ``best / m ** length_penalty`` once its end makes it m > ``length`` long. With a penalty of 0 or less that is
        highest at m = ``length + 1``, and nothing is lost by stopping. Above 0 it grows with m, and only the longest
        answer allowed would bound it; few beams get better by going on, though, so they are taken as they stand.
        """
        if len(finished) < self.size:
            return False
        ranks = sorted((self.rank(h.score, len(h.ids) + 1) for h in finished), reverse=True)
        return self.rank(best, length + 1) < ranks[self.size - 1]


def _one_by_one(
    stepper: Stepper, end: int, max_tokens: int, choose: "Chooser", circles: Sequence[int]
) -> list[list[Hypothesis]]:
    hypotheses = [Hypothesis() for _ in range(stepper.logp.shape[0])]
    writing = list(range(len(hypotheses)))
    for length in range(1, max_tokens + 1):
        tokens = choose(stepper.logp)  # (B,)
        gained = stepper.logp.gather(1, tokens[:, None])[:, 0].tolist()
        chosen = tokens.tolist()
        for row in writing:
            hypothesis = hypotheses[row]
            hypothesis.score += gained[row]
            hypothesis.ended = chosen[row] == end
            if not hypothesis.ended:
                hypothesis.ids.append(chosen[row])
        writing = [row for row in writing if not (hypotheses[row].ended or _unwound(hypotheses[row], circles))]
        if length == max_tokens or not writing:
            break
        stepper.write(tokens)
    return [[hypothesis] for hypothesis in hypotheses]


def _unwound(hypothesis: Hypothesis, circles: Sequence[int]) -> bool:
    """Whether it went in circles; it then says what it repeated once, and no more."""
    surplus = circling(hypothesis.ids, circles)
    if surplus:
        del hypothesis.ids[-surplus:]
    return surplus > 0


class Chooser(Protocol):
    """(B, V) log-probabilities -> (B,) tokens."""

    def __call__(self, logp: Tensor) -> Tensor: ...
