"""What SimulEval keeps of one recording."""

import numpy as np
from simuleval.agents.states import AgentStates
from simuleval.data.segments import Segment, SpeechSegment

from espnet_bestow.streaming.session import Session


class BestowStates(AgentStates):
    """Audio that came since the last look, and the session that has heard all the rest.

    SimulEval's own states append samples to a Python list: 30 minutes are gigabytes, and reading the list at every
    step is quadratic. The buffering is done here and not in ``push``, because simulstream updates the states itself.
    """

    source: list[float]
    target: list[str]

    def reset(self) -> None:
        """Before the first recording and after each: frees the session's place in the model."""
        super().reset()
        self.chunks: list[np.ndarray] = []
        session, self.session = getattr(self, "session", None), None
        if session is not None:
            session.close()

    def update_source(self, segment: Segment) -> None:
        """Keeps the samples as float32 (S,) or (S, channels); a stereo file comes as a list of pairs."""
        self.source_finished = segment.finished
        if not isinstance(segment, SpeechSegment):
            return
        self.tgt_lang = segment.tgt_lang
        self.source_sample_rate = segment.sample_rate
        if len(segment.content):
            self.chunks.append(np.asarray(segment.content, dtype=np.float32))

    def take_audio(self) -> np.ndarray | None:
        """The samples that came since the last call; None where there are none."""
        if not self.chunks:
            return None
        samples = self.chunks[0] if len(self.chunks) == 1 else np.concatenate(self.chunks)
        self.chunks = []
        return samples

    session: Session | None
