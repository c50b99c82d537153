"""Many sessions, one model: whoever can go on takes part in the next batch, each at its own position and policy.

A round has three stages, each one batched call for all sessions it concerns: *hear* (the encoder, for sessions whose
policy asks for frames whose audio has come), *read* (the connector, for the pending token of each; here AlignAtt and
EDAtt may send a session back to listening) and *think* (the LLM). What a session writes does not depend on the others.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from espnet_bestow.circles import circling
from espnet_bestow.connectors import LLMInput
from espnet_bestow.errors import BadRowError
from espnet_bestow.model import BestowModel, SeatedModelState
from espnet_bestow.prompt import PromptTemplate
from espnet_bestow.streaming.listener import Listener
from espnet_bestow.streaming.policies import EVERYTHING, DraftPolicy, Policy, TokenPolicy, View
from espnet_bestow.streaming.session import Segment, Session, SessionOptions, Token

_Turn = tuple[Session, Segment]


class Pool:
    """Sessions that share a model.

    Args:
        model: in eval mode.
        listener: how it hears audio that is still arriving.
        template: how instructions become token ids, and the end token.
        block: whose cross-attention says where a token looks, for policies and word times.
    """

    def __init__(self, model: BestowModel, listener: Listener, template: PromptTemplate, block: int = -1):
        self.model = model
        self.listener = listener
        self.template = template
        self.block = block
        self.max_tokens = template.max_tokens
        self.sessions: list[Session] = []
        self.device = next(model.parameters()).device
        self.state: SeatedModelState = model.seated()

    def open(self, prompt: str, policy: Policy, options: SessionOptions | None = None) -> Session:
        """A new session; ``close`` it, or use it in a ``with``."""
        ids = self.template.encode_prompt(prompt)
        session = Session(self, ids, policy, options or SessionOptions())
        self.sessions.append(session)
        return session

    def forget(self, session: Session) -> None:
        """See :meth:`Session.close`."""
        self.sessions.remove(session)
        for segment in session.segments:
            self._stand_up(segment)

    @torch.no_grad()
    def step(self) -> list[Session]:
        """One round for every session that can go on; these sessions, none if all of them wait for audio."""
        started = time.perf_counter()
        turns = [(session, segment) for session in self.sessions if (segment := session.front) is not None]
        for session, segment in turns:
            segment.target = self._target(session, segment)
        active = self._hear(turns)
        active += self._read_and_think(turns)
        spent = time.perf_counter() - started
        went_on = list({id(session): session for session, _ in active}.values())
        for session in went_on:
            session.clock.spend(spent)
        return went_on

    # Hearing

    def _hear(self, turns: Sequence[_Turn]) -> list[_Turn]:
        able, targets, continued = [], [], []
        for session, segment in turns:
            target = segment.target
            if segment.complete or segment.shown >= target:
                continue
            if segment.ear.received < self.listener.needed(target):
                if not segment.ear.ended:
                    continue
                target = EVERYTHING
            if self._longer(session, segment, target):
                self._continue(session, segment)
                continued.append((session, segment))
                continue
            able.append((session, segment))
            targets.append(target)
        self._encode(able, targets)
        for (session, segment), target in zip(able, targets, strict=True):
            if session.closed:
                continue
            frames = segment.heard.pop(target)
            segment.shown = len(frames)
            segment.complete = target == EVERYTHING
            self._sit_down(segment)
            self.state.connector.hear(self._seat(segment), frames)
            if segment.complete and segment.shown == 0:
                self._finish(session, segment)
        return able + continued

    def _encode(self, turns: Sequence[_Turn], targets: Sequence[int]) -> None:
        """One encoder call for what is not heard yet, and for what will be asked for next.

        A session whose audio cannot be encoded ends; that of the others is encoded without it.
        """
        wanted = [
            (session, segment, frames, frames == target)
            for (session, segment), target in zip(turns, targets, strict=True)
            if target not in segment.heard
            for frames in [target, *self._ahead(session, segment, target)]
        ]
        heard: list[Tensor] = []
        while wanted and not heard:
            try:
                heard = self.listener.hear([(segment.ear, frames) for _, segment, frames, _ in wanted])
            except BadRowError as error:
                session, _, _, now = wanted.pop(error.row)
                if now:
                    session.fail(error.problem)
                    wanted = [each for each in wanted if each[0] is not session]
        for segment in {id(segment): segment for _, segment, *_ in wanted}.values():
            segment.heard.clear()
        for (_, segment, target, _), frames in zip(wanted, heard, strict=True):
            segment.heard[target] = frames

    def _ahead(self, session: Session, segment: Segment, target: int) -> list[int]:
        """What the policy asks for after ``target`` whether it now writes or reads, as far as its audio has come."""
        found: list[int] = []
        for more in range(1, self.listener.ahead + 1):
            frames = self._frames(session, len(segment.written) + more, segment.reads)
            certain = frames == self._frames(session, len(segment.written), segment.reads + more)
            come = segment.ear.received >= self.listener.needed(frames)
            if target == EVERYTHING or not (certain and come) or self._longer(session, segment, frames):
                break
            if frames != target:
                found.append(frames)
        return found

    def _longer(self, session: Session, segment: Segment, frames: int) -> bool:
        """Whether these frames are made of more audio than a segment may have: look-ahead counts, and the end."""
        return session.longest is not None and session.longest < min(segment.ear.received, self.listener.needed(frames))

    def _target(self, session: Session, segment: Segment) -> int:
        return self._frames(session, len(segment.written), segment.reads)

    def _frames(self, session: Session, written: int, reads: int) -> int:
        """What the policy waits for, and what comes together with it."""
        return self.listener.chunks.whole(session.policy.frames(written, reads))

    # Reading and thinking

    def _read_and_think(self, turns: Sequence[_Turn]) -> list[_Turn]:
        blind: list[_Turn] = []
        long: list[_Turn] = []
        short: list[_Turn] = []
        for session, segment in turns:
            if segment.done or session.closed:
                continue
            if segment.seat is None:
                self._sit_down(segment)
            if not segment.pending:
                self._start(session, segment)
            if segment.blind:
                blind.append((session, segment))
            elif segment.complete or segment.shown >= segment.target:
                (long if len(segment.pending) > 1 else short).append((session, segment))
        if blind:
            self._prefill(blind)
        # Prompts apart from single tokens: together, every row would be as long as the longest.
        for group in (long, short):
            if group:
                self._advance(group)
        return [*blind, *long, *short]

    def _start(self, session: Session, segment: Segment) -> None:
        """What has to be consumed before the next token can be asked for, from an empty seat."""
        everything = [*segment.prompt, *segment.ids]
        if session.policy.blind_prompt and not segment.written:
            segment.blind, segment.pending = everything[:-1], everything[-1:]
        else:
            segment.pending = everything

    def _prefill(self, turns: Sequence[_Turn]) -> None:
        """Prompt positions that see no speech: they need not wait for it, and are the same in all sessions."""
        alike: dict[tuple[int, ...], list[Segment]] = {}
        for _, segment in turns:
            alike.setdefault(tuple(segment.blind), []).append(segment)
        known = self._prompts()
        new = {ids: segments[0] for ids, segments in alike.items() if ids not in known}
        if new:
            text = self._read(list(new.values()), list(new), [0] * len(new))
            self.model.think(text, self.state, keep=1)
        for ids, segments in alike.items():
            seats = [self._seat(segment) for segment in segments]
            source = known.get(ids, seats[0])
            self.state.share(source, [seat for seat in seats if seat != source], len(ids))
            for segment, seat in zip(segments, seats, strict=True):
                self.state.seats.advance(seat, len(ids))
                segment.blind = []

    def _prompts(self) -> dict[tuple[int, ...], int]:
        """Seats of segments that have read their prompts without speech, by these."""
        found = {}
        for session in self.sessions:
            segment, policy = session.front, session.policy
            if segment is None or segment.seat is None or isinstance(policy, DraftPolicy):  # those read it again
                continue
            if policy.blind_prompt:
                ids = tuple(segment.prompt[:-1])
                if len(ids) <= self.state.seats.lengths[segment.seat]:
                    found[ids] = segment.seat
        return found

    def _advance(self, turns: Sequence[_Turn]) -> None:
        """One token for each: reading decides whether it may be thought of."""
        segments = [segment for _, segment in turns]
        shown = [segment.shown for segment in segments]
        text = self._read(segments, [segment.pending for segment in segments], shown)
        within = self.model.connector.reads_in_llm
        best = self._best(text) if within else []  # (B,)
        attention = self.state.connector.attention(self.block).cpu()  # (B, F)
        # Frames that are not shown weigh exactly 0.
        frames = attention.argmax(1).tolist() if attention.shape[1] else []
        accepted = []
        for row, (session, segment) in enumerate(turns):
            if self._accepts(session.policy, segment, attention, row):
                accepted.append(row)
            else:
                self._wait(session, segment)
        if not accepted:
            return
        if within:
            best = [best[row] for row in accepted]
        else:
            if len(accepted) < len(turns):
                index = torch.tensor(accepted, device=self.device)
                text = LLMInput(text.embeddings[index], text.mask[index])
                self.state.llm.select(accepted)
            best = self._best(text)
        for row, token in zip(accepted, best, strict=True):
            self._take(*turns[row], token, frames[row] if shown[row] else None)

    def _best(self, text: LLMInput) -> list[int]:
        """The token that the LLM prefers next, for each row."""
        return self.model.think(text, self.state, keep=1)[:, -1].argmax(-1).tolist()

    def _accepts(self, policy: Policy, segment: Segment, attention: Tensor, row: int) -> bool:
        """Whether the next token, the one of this row of the attention (B, F), may be written."""
        if not isinstance(policy, TokenPolicy) or not policy.looks:
            return True
        return policy.accepts(View(segment.shown, segment.complete, attention[row, : segment.shown]))

    def _read(self, segments: Sequence[Segment], ids: Sequence[Sequence[int]], shown: Sequence[int]) -> LLMInput:
        """Rows padded on the left, so that every last position is in the last column."""
        lengths = [len(row) for row in ids]
        width = max(lengths)
        visible = torch.tensor(shown, dtype=torch.int32)[:, None]  # (B, 1)
        if width == 1:  # nearly always: nothing to pad
            padded = torch.tensor([token for row in ids for token in row])[:, None]
            mask = torch.ones_like(visible, dtype=torch.bool)
        else:
            padded = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids])  # (B, U)
            mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]  # (B, U)
            visible = visible * mask
        padded, mask, visible = (each.to(self.device) for each in (padded, mask, visible))
        self.state.sit([self._seat(segment) for segment in segments], mask)
        return self.model.read(padded, mask, visible, self.state)

    def _wait(self, session: Session, segment: Segment) -> None:
        """READ, until there is more to see: nothing else can change the answer, nor may a draft agree with itself."""
        segment.reads += 1
        while not segment.complete and self._target(session, segment) <= segment.shown:
            segment.reads += 1

    # Writing

    def _take(self, session: Session, segment: Segment, token: int, frame: int | None) -> None:
        """What becomes of the token that the LLM prefers."""
        drafting, circles = isinstance(session.policy, DraftPolicy), session.options.circles
        if token == self.template.end or circling([*segment.ids[-session.widest_circle :], token], circles):
            if drafting:
                self._end_draft(session, segment)
            elif segment.complete or (token == self.template.end and not session.options.suppress_end):
                self._finish(session, segment)
            else:
                self._wait(session, segment)  # the seat did not advance: the same position is read again
            return
        self.state.seats.advance(self._seat(segment), len(segment.pending))
        segment.pending = [token]
        written = Token(token, segment.shown, frame)
        if drafting:
            segment.sketch(written)
        else:
            session.write(segment, written)
        if len(segment.ids) < segment.limit:
            return
        if drafting:
            self._end_draft(session, segment)
        if len(segment.written) >= segment.limit and not segment.done:
            (self._finish if segment.complete else self._continue)(session, segment)

    def _end_draft(self, session: Session, segment: Segment) -> None:
        policy = session.policy
        assert isinstance(policy, DraftPolicy)
        draft = segment.take_draft()
        segment.drafts.append([token.id for token in draft])
        agreed = len(draft) if segment.complete else policy.agreed(segment.drafts)
        common = segment.drafts[-1][:agreed]
        segment.drafts = [other[agreed:] for other in segment.drafts if other[:agreed] == common]
        for token in draft[:agreed]:
            session.write(segment, token)
        if segment.complete:
            self._finish(session, segment)
            return
        self._wait(session, segment)
        # The next draft reads prompt and text again, with all frames it then sees, as an offline model would.
        self.state.seats.lengths[self._seat(segment)] = 0
        segment.pending = []

    def _finish(self, session: Session, segment: Segment) -> None:
        self._stand_up(segment)
        session.finish_segment(segment)

    def _continue(self, session: Session, segment: Segment) -> None:
        self._stand_up(segment)
        session.continue_segment(segment)

    # Seats

    def _seat(self, segment: Segment) -> int:
        assert segment.seat is not None
        return segment.seat

    def _sit_down(self, segment: Segment) -> None:
        if segment.seat is None:
            segment.seat = self.state.seats.take()

    def _stand_up(self, segment: Segment) -> None:
        if segment.seat is not None:
            self.state.leave(segment.seat)
            segment.seat = None
