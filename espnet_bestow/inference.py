"""Speech2Text: from a trained model and audio to text."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet_bestow.audio import read_audio, resample
from espnet_bestow.circles import CIRCLES
from espnet_bestow.decoding import Beam, Greedy, Hypothesis, Sampling, Search, Stepper
from espnet_bestow.encoders.chunks import WHOLE, needs_the_whole
from espnet_bestow.encoders.log_mel import works_frame_by_frame
from espnet_bestow.errors import BadRowError, rows_named
from espnet_bestow.espnet_model import ESPnetBestowModel
from espnet_bestow.long_audio import pieces
from espnet_bestow.model_dir import locate
from espnet_bestow.preprocess import SHORTEST, check_length, check_speech
from espnet_bestow.prompt import PromptTemplate
from espnet_bestow.quantize import Precision, quantize
from espnet_bestow.streaming.cache_aware import CacheAwareListener
from espnet_bestow.streaming.contextual_block import ChunkedListener
from espnet_bestow.streaming.features import LogMel, StreamFeatures
from espnet_bestow.streaming.listener import RIGHT_CONTEXT, Listener, RecomputedListener, samples_per_frame
from espnet_bestow.streaming.policies import Policy, build_policy
from espnet_bestow.streaming.pool import Pool
from espnet_bestow.streaming.remembered import RememberingListener
from espnet_bestow.streaming.session import Session, SessionOptions
from espnet_bestow.streaming.subsampled import Begun

Audio = str | Path | np.ndarray | Tensor

_PIECES = 8
"""Of long recordings, that are answered together at least; otherwise as many as the caller gives recordings."""


@dataclass(frozen=True)
class Result:
    """An answer; unpacks as (text, tokens, score)."""

    text: str
    tokens: list[str]
    score: float

    def __iter__(self) -> Any:
        return iter((self.text, self.tokens, self.score))

    @classmethod
    def joined(cls, parts: "Sequence[Result]") -> "Result":
        """The answers to the parts of a recording as one; scores are logarithms."""
        text = " ".join(part.text for part in parts if part.text)
        return cls(text, [token for part in parts for token in part.tokens], sum(part.score for part in parts))


@dataclass
class DecodingOptions:
    """How answers are written."""

    beam_size: int = 5
    """1 is greedy."""
    length_penalty: float = 1.0
    """Hypotheses compete by score / length ** length_penalty."""
    max_tokens: int = 200
    """Longest answer."""
    sampling: bool = False
    """Draw tokens instead of searching."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    circles: Sequence[int] = CIRCLES
    """How often one, two, three, ... tokens may follow themselves (greedy and sampling)."""
    longest: float | None = None
    """Seconds of audio that are answered at once: longer recordings are cut at pauses, and the answers joined."""

    def search(self) -> Search:
        """The search that these options describe."""
        if self.sampling:
            return Sampling(self.temperature, self.top_k, self.top_p, self.seed, self.circles)
        return Greedy(self.circles) if self.beam_size == 1 else Beam(self.beam_size, self.length_penalty)


class Speech2Text:
    """A trained model that answers instructions about audio.

    Example::

        s2t = Speech2Text.from_pretrained("exp/bestow_train")
        text, tokens, score = s2t("talk.flac", prompt="translate to german")

    Args:
        model: in eval mode.
        template: how instructions become token ids.
        default_prompt: used where no instruction is given.
        options: how answers are written.
        device: torch device.
        sample_rate: what the model was trained on.
    """

    def __init__(
        self,
        model: ESPnetBestowModel,
        template: PromptTemplate,
        default_prompt: str,
        options: DecodingOptions | None = None,
        device: str = "cpu",
        sample_rate: int = 16000,
    ):
        if model.llm is None:
            raise ValueError("this is a CTC pre-training model: it has an encoder, but no LLM to answer with")
        self.model = model.to(device).eval()
        self.template = template
        self.default_prompt = default_prompt
        self.options = options or DecodingOptions()
        self.device = device
        self.sample_rate = sample_rate

    @classmethod
    def from_files(
        cls,
        config: str | Path,
        model_file: str | Path,
        options: DecodingOptions | None = None,
        device: str = "cpu",
    ) -> "Speech2Text":
        """From the config.yaml and checkpoint that training wrote."""
        from espnet_bestow.task import BestowTask

        model, args = BestowTask.build_model_from_file(config, model_file, device)
        rate = BestowTask.sample_rate(args)
        return cls(model, BestowTask.build_template(args), args.default_prompt, options, device, rate)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, options: DecodingOptions | None = None, device: str = "cpu"
    ) -> "Speech2Text":
        """From an experiment directory, a zip made by stage 14, or a hub tag."""
        config, model_file = locate(name)
        return cls.from_files(config, model_file, options, device)

    def quantize(self, precision: Precision) -> "Speech2Text":
        """Makes writing faster on a CPU, in place: connector and LLM with smaller weights (``bf16`` or ``int8``).

        Example::

            s2t = Speech2Text.from_pretrained("exp/bestow_train").quantize("int8")

        The encoder stays: it reads its weights for many frames at a time.
        """
        assert self.model.llm is not None
        quantize(self.model.connector, precision)
        quantize(self.model.llm, precision)
        return self

    def __call__(self, audio: Audio, prompt: str | None = None, sample_rate: int | None = None) -> Result:
        """Answers ``prompt`` about ``audio`` (a file, or samples (S,) or (S, channels) at ``sample_rate``).

        Samples are float in -1 to 1 or signed integer PCM.
        """
        return self.batch([audio], [prompt or self.default_prompt], sample_rate)[0]

    def batch(self, audios: Sequence[Audio], prompts: Sequence[str], sample_rate: int | None = None) -> list[Result]:
        """Several utterances at once; a batch gives what its members give alone."""
        speech = [self._samples(audio, sample_rate) for audio in audios]
        ids = [self.template.encode_prompt(p, _name(a)) for a, p in zip(audios, prompts, strict=True)]
        return self.answers(speech, ids, [_name(audio) for audio in audios])

    def listener(self, right_context: int | None = None, context: Sequence[int] | None = None) -> Listener:
        """How the model hears audio that is still arriving, with its encoder's weights as they are now.

        A cache-aware encoder hears chunk by chunk, ESPnet's contextual block encoders block by block; any other, and
        those too in a context of the whole recording or behind features that depend on it (utterance_mvn), is
        recomputed on the growing audio.

        Args:
            right_context: frames that a recomputed encoder hears beyond those that are shown (default: 13); given for
                an encoder that need not be recomputed, it is all the same.
            context: attention context (left, right) of a cache-aware encoder in frames (default: its own).
        """
        encoder, name = self.model.encoder, type(self.model.encoder).__name__
        cache_aware = hasattr(encoder, "chunk_step")
        if context is not None and not cache_aware:
            raise ValueError(f"context={tuple(context)}: {name} is not cache-aware, it has a right_context")
        if context is not None and right_context is not None:
            raise ValueError(f"context={tuple(context)} and right_context={right_context}: one of them at a time")
        if right_context is None and (context is not None or not needs_the_whole(self.model.features)):
            if cache_aware and (context is not None or encoder.context != WHOLE):
                return CacheAwareListener.of(self.model, context)
            if hasattr(encoder, "forward_infer"):
                return ChunkedListener.of(self.model)
        return self._recomputed(RIGHT_CONTEXT if right_context is None else right_context)

    def _recomputed(self, right_context: int) -> Listener:
        @torch.inference_mode()
        def encode(waveform: Tensor, lengths: Tensor) -> list[Tensor]:
            return self.model.encode(waveform.to(self.device), lengths.to(self.device)).rows()

        encoder: Any = self.model.encoder
        features: Any = self.model.features
        quick = encoder.whole_pass() if hasattr(encoder, "whole_pass") else None

        @torch.inference_mode()
        def encode_log_mel(frames: Tensor, counts: Tensor, _: Tensor) -> list[Tensor]:
            feats = torch.nn.utils.rnn.pad_sequence(frames.split(counts.tolist()), batch_first=True)  # (B, T, 80)
            if quick is None:
                return self.model.encode_extracted(feats, counts.to(self.device)).rows()
            return quick(*features.refine(feats, counts))

        hop = samples_per_frame(encode, self.sample_rate)
        shortest = round(SHORTEST * self.sample_rate)
        if not works_frame_by_frame(features.frontend):
            return RecomputedListener(encode, self.sample_rate, hop, right_context, shortest)
        if quick is None or features.preencoder is not None or needs_the_whole(features):
            return RememberingListener(LogMel(features.frontend), encode_log_mel, hop, right_context, shortest)
        front = Begun(StreamFeatures(features), quick)
        return RememberingListener(front, quick.encode, hop, right_context, shortest)

    def pool(self, listener: Listener | None = None) -> Pool:
        """For many streaming sessions at once; its sessions are advanced together."""
        return Pool(self.model, listener or self.listener(), self.template)

    def stream(
        self,
        prompt: str | None = None,
        policy: Policy | str = "wait_k",
        options: SessionOptions | None = None,
        listener: Listener | None = None,
        **policy_options: float,
    ) -> Session:
        """A streaming session: push audio as it comes, get words as soon as the policy lets them out.

        Example::

            session = s2t.stream("translate to german", "wait_k", k=8, step=2)
            for chunk in microphone:
                print(*[word.text for word in session.push(chunk, 16000)])
            print(*[word.text for word in session.finish()])

        Args:
            prompt: instruction; default: the model's.
            policy: when to read and when to write; a name with its ``policy_options``, or an object.
            options: limits and guards; default: ``max_tokens`` as in offline decoding.
            listener: how audio is heard; measuring the default one costs two short encodings, so keep it.
            **policy_options: of a policy that is given by name.
        """
        if isinstance(policy, str):
            policy = build_policy(policy, **policy_options)
        elif policy_options:
            raise ValueError(f"policy_options {sorted(policy_options)} belong to a policy that is given by its name")
        options = options or SessionOptions(max_tokens=self.options.max_tokens)
        return self.pool(listener).open(prompt or self.default_prompt, policy, options)

    @torch.inference_mode()
    def search(self, speech: Sequence[np.ndarray], prompts: Sequence[Sequence[int]]) -> list[list[Hypothesis]]:
        """speech: B arrays (S,), prompts: B id lists -> B n-best lists."""
        lengths = torch.tensor([len(s) for s in speech], device=self.device)
        waveform = torch.zeros(len(speech), int(lengths.max()), device=self.device)
        for row, samples in zip(waveform, speech, strict=True):
            row[: len(samples)] = torch.from_numpy(samples)
        heard = self.model.encode(waveform, lengths)
        limits = self._longest_answers(heard.lengths.tolist(), prompts)
        found: dict[int, list[Hypothesis]] = {}
        for limit in sorted(set(limits)):  # nearly always one: who has less room than others does not cut them short
            rows = [row for row, own in enumerate(limits) if own == limit]
            part = heard if len(rows) == len(limits) else heard.select(rows)
            stepper = Stepper(self.model, part, [prompts[row] for row in rows])
            found |= zip(rows, self.options.search()(stepper, self.template.end, limit), strict=True)
        return [found[row] for row in range(len(limits))]

    def _longest_answers(self, frames: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[int]:
        """Tokens that fit the LLM's context behind each prompt, and behind the speech where that takes positions."""
        room, limits = self.template.max_tokens, [self.options.max_tokens] * len(prompts)
        if room is None:
            return limits
        for row, (count, ids) in enumerate(zip(frames, prompts, strict=True)):
            before = self.model.connector.positions(count)
            if before + len(ids) >= room:  # a prompt alone leaves room: see PromptTemplate.encode_prompt
                raise BadRowError(
                    row,
                    f"speech of {before} positions and a prompt of {len(ids)} tokens leave no room for an answer in "
                    f"the LLM's context of {room}",
                )
            limits[row] = min(limits[row], room - before - len(ids))
        return limits

    def answers(
        self, speech: Sequence[np.ndarray], prompts: Sequence[Sequence[int]], names: Sequence[str]
    ) -> list[Result]:
        """The best answer to each of B prompts about arrays (S,); long ones piece by piece (``options.longest``).

        Errors call the utterances by their names.
        """
        cut = [pieces(samples, self.sample_rate, self.options.longest) for samples in speech]
        parts = [(part, ids, name) for row, ids, name in zip(cut, prompts, names, strict=True) for part in row]
        size = max(len(speech), _PIECES)
        found: list[Result] = []
        for start in range(0, len(parts), size):
            audio, instructions, called = zip(*parts[start : start + size], strict=True)
            with rows_named(called):
                found += [self.result(nbest[0]) for nbest in self.search(audio, instructions)]
        rest = iter(found)
        return [Result.joined(list(islice(rest, len(row)))) for row in cut]

    def result(self, hypothesis: Hypothesis) -> Result:
        """Ids as words."""
        tokens = self.template.tokenizer.convert_ids_to_tokens(hypothesis.ids)
        return Result(self.template.decode(hypothesis.ids), list(tokens), hypothesis.score)

    def _samples(self, audio: Audio, sample_rate: int | None) -> np.ndarray:
        if isinstance(audio, str | Path):
            return check_length(str(audio), read_audio(audio, self.sample_rate), self.sample_rate)
        samples = audio.detach().cpu().numpy() if isinstance(audio, Tensor) else audio
        samples = resample(check_speech(_name(audio), samples), sample_rate or self.sample_rate, self.sample_rate)
        return check_length(_name(audio), samples, self.sample_rate)


def _name(audio: Audio) -> str:
    return str(audio) if isinstance(audio, str | Path) else "<samples>"
