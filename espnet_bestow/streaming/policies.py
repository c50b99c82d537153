"""Read-write policies: pure functions of what is visible, without a model.

A policy answers two questions. *How many frames must be visible before the next token is asked for?* (:meth:`frames`,
a function of how many tokens were written and how often the answer was READ), and *may what the model then proposes be
written?* Token policies look at the attention of one token before the LLM has even run; draft policies look at whole
drafts of everything that is still to be said.

Whatever a policy decides ends up as ``visible`` (see :mod:`espnet_bestow.visibility`), one number per token.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from torch import Tensor

from espnet_bestow.visibility import wait_k_frames

EVERYTHING = 1 << 40
"""Frames: only the end of the audio satisfies this."""


@dataclass(frozen=True)
class View:
    """What a token policy may look at before a token is written."""

    shown: int  # frames that are visible
    ended: bool  # whether these are all there will ever be
    attention: Tensor  # (shown,) how the next token attends to them, mean over heads


class Policy(ABC):
    """Base of what is chosen by name (:data:`POLICIES`)."""

    blind_prompt = True
    """Whether prompt positions before the last see no speech, as a model trained with wait-k knows it."""

    @abstractmethod
    def frames(self, written: int, reads: int) -> int:
        """Frames that must be visible before token ``written`` is asked for; grows with both arguments.

        Args:
            written: tokens written so far.
            reads: how often the answer was READ so far.
        """


class TokenPolicy(Policy):
    """Decides token by token."""

    @property
    def looks(self) -> bool:
        """Whether :meth:`accepts` has a say: otherwise nobody need show it anything."""
        return type(self).accepts is not TokenPolicy.accepts

    def accepts(self, view: View) -> bool:
        """Whether the next token may be written; otherwise READ."""
        return True


class DraftPolicy(Policy):
    """Decides on drafts: everything the model would say if the audio ended now.

    Each of them works with an untouched offline model: a draft sees all frames at every position, also of the prompt,
    as in offline training.
    """

    blind_prompt = False

    @abstractmethod
    def agreed(self, drafts: Sequence[Sequence[int]]) -> int:
        """How many tokens of the last draft may be written.

        Args:
            drafts: what followed the written tokens in each draft so far, the newest last. After the end of the audio
                nobody asks: the last draft is the answer.
        """


class Offline(TokenPolicy):
    """``offline``: waits for the end of the audio; the upper bound of quality."""

    blind_prompt = False

    def frames(self, written: int, reads: int) -> int:
        """See base class."""
        return EVERYTHING


class WaitK(TokenPolicy):
    """``wait_k``: token n sees exactly the first (n + K) * L frames, all of them once the audio has ended.

    A READ (the model wanted to end, or went in circles, before the audio did) shifts all that follows by L frames:
    whoever had nothing to say any more was ahead of the speaker.

    Args:
        k: K.
        step: L, frames per written token.
        catch_up: tokens written per L frames once speech is faster than that: 1.25 writes five tokens in four steps.
    """

    def __init__(self, k: int = 6, step: int = 4, catch_up: float = 1.0):
        _at_least("wait_k", 1, k=k, step=step)
        if catch_up < 1.0:
            raise ValueError(f"wait_k: catch_up={catch_up} must be >= 1")
        self.k, self.step, self.catch_up = k, step, catch_up

    def frames(self, written: int, reads: int) -> int:
        """See base class."""
        return wait_k_frames(int(written / self.catch_up) + reads, self.k, self.step)


class _ByReads(Policy):
    """Frames come ``step`` by ``step`` after the ``first`` ones (default: ``step``), however much is written.

    Args:
        name: of the policy, for errors.
        step: frames per READ.
        first: frames before the first token or draft.
    """

    def __init__(self, name: str, step: int, first: int | None):
        self.step, self.first = step, step if first is None else first
        _at_least(name, 1, step=self.step, first=self.first)

    def frames(self, written: int, reads: int) -> int:
        """See base class."""
        return self.first + reads * self.step


class AlignAtt(_ByReads, TokenPolicy):
    """``align_att``: a token is written unless its attention points to the newest frames.

    Args:
        threshold: the frame it attends to most must lie at least this many frames before the last visible one.
        step: frames per READ.
        first: frames before the first token.
        sink: leading frames that do not count, where attention without a target is parked.
        blind_prompt: see :class:`Policy`; False for models trained offline.
    """

    def __init__(
        self, threshold: int = 8, step: int = 4, first: int | None = None, sink: int = 2, blind_prompt: bool = True
    ):
        super().__init__("align_att", step, first)
        _at_least("align_att", 0, threshold=threshold, sink=sink)
        self.threshold, self.sink = threshold, sink
        self.blind_prompt = blind_prompt

    def accepts(self, view: View) -> bool:
        """See base class."""
        if view.ended:
            return True
        target = attended(view.attention, self.sink)
        return target is not None and view.shown - 1 - target >= self.threshold


class EDAtt(_ByReads, TokenPolicy):
    """``ed_att``: a token is written unless the newest frames get too much of its attention.

    Args:
        alpha: the attention they may get together.
        newest: how many frames those are.
        step, first, sink, blind_prompt: as for AlignAtt.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        newest: int = 8,
        step: int = 4,
        first: int | None = None,
        sink: int = 2,
        blind_prompt: bool = True,
    ):
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"ed_att: alpha={alpha} must be in (0, 1]")
        super().__init__("ed_att", step, first)
        _at_least("ed_att", 0, sink=sink)
        _at_least("ed_att", 1, newest=newest)
        self.alpha, self.newest, self.sink = alpha, newest, sink
        self.blind_prompt = blind_prompt

    def accepts(self, view: View) -> bool:
        """See base class."""
        if view.ended:
            return True
        counted = view.attention[self.sink :]
        return len(counted) > self.newest and float(counted[-self.newest :].sum()) < self.alpha


class LocalAgreement(_ByReads, DraftPolicy):
    """``local_agreement``: writes what the last ``n`` drafts have in common.

    Args:
        n: drafts that must agree.
        step: frames per draft.
        first: frames before the first draft.
    """

    def __init__(self, n: int = 2, step: int = 8, first: int | None = None):
        super().__init__("local_agreement", step, first)
        _at_least("local_agreement", 2, n=n)
        self.n = n

    def agreed(self, drafts: Sequence[Sequence[int]]) -> int:
        """See base class."""
        if len(drafts) < self.n:
            return 0
        common = 0
        for tokens in zip(*drafts[-self.n :], strict=False):
            if len(set(tokens)) > 1:
                break
            common += 1
        return common


class HoldN(_ByReads, DraftPolicy):
    """``hold_n``: writes all but the last ``n`` tokens of every draft.

    Args:
        n: tokens held back.
        step: frames per draft.
        first: frames before the first draft.
    """

    def __init__(self, n: int = 4, step: int = 8, first: int | None = None):
        super().__init__("hold_n", step, first)
        _at_least("hold_n", 0, n=n)
        self.n = n

    def agreed(self, drafts: Sequence[Sequence[int]]) -> int:
        """See base class."""
        return max(len(drafts[-1]) - self.n, 0)


POLICIES: dict[str, type[Policy]] = {
    "offline": Offline,
    "wait_k": WaitK,
    "align_att": AlignAtt,
    "ed_att": EDAtt,
    "local_agreement": LocalAgreement,
    "hold_n": HoldN,
}


def build_policy(name: str, **options: float) -> Policy:
    """The policy of that name."""
    if name not in POLICIES:
        raise ValueError(f"policy={name!r} is not known; known: {', '.join(POLICIES)}")
    try:
        return POLICIES[name](**options)
    except TypeError as error:
        raise ValueError(f"policy {name}: wrong options {sorted(options)} ({error})") from error


def attended(attention: Tensor, sink: int = 0) -> int | None:
    """The frame that gets most of the attention (F,), the first ``sink`` frames aside; None if there is no other."""
    counted = attention[sink:]
    return sink + int(counted.argmax()) if len(counted) else None


def _at_least(policy: str, least: int, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{policy}: {name}={value} must be a whole number >= {least}")
