"""The SimulEval agent: a thin face on a streaming session.

SimulEval calls ``policy`` exactly once per segment and stops after the last one: every call writes all words that are
due, and the last one writes the rest and says so. Words are whole, because SimulEval takes what is written between two
segments for words of its own. (There is no ``@entrypoint``: the agent is named by ``--agent-class``, and SimulEval
refuses a class that it meets under two names.)
"""

import argparse
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import torch
from simuleval.agents import SpeechToTextAgent
from simuleval.agents.actions import Action, ReadAction, WriteAction
from simuleval.agents.states import AgentStates

from espnet_bestow.datadir.task_prompts import translation_prompt
from espnet_bestow.inference import Speech2Text
from espnet_bestow.simul.loading import Hearing, Streamer, load_model
from espnet_bestow.simul.options import UNITS, AgentOptions
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.simul.states import BestowStates


class BestowAgent(SpeechToTextAgent):
    """A trained model as an agent.

    Args:
        args: SimulEval's arguments, or simulstream's configuration (which calls neither ``from_args`` nor ``to``).
    """

    models: ClassVar[dict[tuple[str, str], Speech2Text]] = {}
    """By name and device: simulstream makes an agent for each client."""

    states: BestowStates

    def __init__(self, args: argparse.Namespace | SimpleNamespace) -> None:
        self.options = AgentOptions.read(args)
        self.spec = PolicySpec.parse(self.options.policy)
        self.dtype = getattr(torch, self.options.dtype)
        # Before the rest of this constructor, the base class already builds states and resets them.
        super().__init__(args)
        self._load(self.options.device)

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        """Adds the options ``--bestow-...``."""
        AgentOptions.add_to(parser)

    def build_states(self) -> BestowStates:
        """See base class."""
        return BestowStates()

    def to(self, device: str, *args: object, fp16: bool = False, **kwargs: object) -> None:
        """SimulEval's ``--device`` and ``--fp16``; our own options come first."""
        if fp16 and self.dtype == torch.float32:
            self.dtype = torch.float16

    def _load(self, device: str) -> None:
        self.device = device
        key = self.options.model, device
        fresh = key not in self.models
        if fresh:
            self.models[key] = load_model(*key)
        self.speech2text = self.models[key]
        hearing = Hearing(self.options.right_context, self.options.context)
        self.streamer = Streamer(self.speech2text, self.spec, hearing)
        if fresh:
            self._warm_up()

    def _warm_up(self) -> None:
        """A second of noise, so that the first recording does not pay for lazy initialisations."""
        states = self.build_states()
        rate = self.speech2text.sample_rate
        states.chunks = [np.random.default_rng(0).normal(0.0, 0.01, rate).astype(np.float32)]
        states.source_sample_rate = rate
        states.source_finished = True
        self.policy(states)
        states.reset()

    def policy(self, states: AgentStates | None = None) -> Action:
        """What can be written now that ``states`` hold more audio, or their end."""
        states = self.states if states is None else states
        assert isinstance(states, BestowStates)
        if states.target_finished:
            return ReadAction()
        words = []
        samples = states.take_audio()
        with torch.autocast(torch.device(self.device).type, self.dtype, enabled=self.dtype != torch.float32):
            if samples is not None:
                if states.session is None:
                    states.session = self.streamer.open(self.prompt(states))
                words += states.session.push(samples, states.source_sample_rate)
            if states.source_finished and states.session is not None:
                words += states.session.finish()
        content = UNITS[self.options.unit].join(word.text for word in words)
        if not words and not states.source_finished:
            return ReadAction()
        return WriteAction(content, finished=states.source_finished)

    def prompt(self, states: AgentStates) -> str:
        """The instruction of a recording: its ``--tgt-lang``, else ``--bestow-prompt``, else the model's own.

        A language code asks for a translation into that language; anything longer is the instruction itself.
        """
        for wish in (states.tgt_lang, self.tgt_lang):
            # SimulEval's segments have a typing object where nobody set a language.
            if isinstance(wish, str) and wish:
                return translation_prompt(wish) if wish.isalpha() and len(wish) <= 3 else wish
        return self.options.prompt or self.speech2text.default_prompt
