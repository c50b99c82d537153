"""The ESPnet face of the model: features, loss, stats and weight."""

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.asr.preencoder.abs_preencoder import AbsPreEncoder
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.layers.abs_normalize import AbsNormalize
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_bestow.alignment import alignment_losses, ctc_spans
from espnet_bestow.connectors import Connector, ConnectorState, CrossAttentionConnector, Speech
from espnet_bestow.connectors.attention import WatchedSpeech
from espnet_bestow.connectors.cross_attention import CrossAttentionState
from espnet_bestow.encoders.chunks import chunks_of
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.model import BestowModel, ModelState
from espnet_bestow.silence import SilenceAround
from espnet_bestow.visibility import InChunks, Policy, Rule, answer_index

Stats = dict[str, Tensor | None]

LENGTHS_DIFFER = 2
"""Frames by which two encoders of the same frame rate may differ at the end of an utterance."""

SILENCE = 1024
"""Samples after the longest utterance of a batch: half a window of up to 128 ms."""


class Features(nn.Module):
    """ESPnet's chain before the encoder, each part optional: frontend, SpecAugment, normalisation, pre-encoder.

    Our own is what comes before it in training: silence around the recordings.
    """

    def __init__(
        self,
        frontend: AbsFrontend | None = None,
        specaug: AbsSpecAug | None = None,
        normalize: AbsNormalize | None = None,
        preencoder: AbsPreEncoder | None = None,
        silence: SilenceAround | None = None,
    ):
        super().__init__()
        self.silence = silence
        self.frontend = frontend
        self.specaug = specaug
        self.normalize = normalize
        self.preencoder = preencoder

    def extract(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> (B, T, 80), before augmentation and normalisation.

        ESPnet's STFT mirrors the end of the padded batch, so that the last frames of an utterance would depend on
        whether it is the longest one. With silence after all of them, a batch gives what its members give alone.
        """
        if self.frontend is None:
            return waveform, lengths
        waveform = F.pad(waveform[:, : int(lengths.max())], (0, SILENCE))
        feats, lengths = self.frontend(waveform, lengths)
        return feats[:, : int(lengths.max())], lengths

    def surround(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What a model in training hears of recordings (B, S): them, and silence around them."""
        return self.silence(waveform, lengths) if self.silence is not None and self.training else (waveform, lengths)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> (B, T, 80)."""
        return self.refine(*self.extract(waveform, lengths))

    def refine(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What follows :meth:`extract`: (B, T, 80) -> (B, T, 80), of a pre-encoder less and wider."""
        if self.specaug is not None and self.training:
            feats, lengths = self.specaug(feats, lengths)
        if self.normalize is not None:
            feats, lengths = self.normalize(feats, lengths)
        if self.preencoder is not None:
            feats, lengths = self.preencoder(feats, lengths)
        return feats, lengths


def final(frames: Tensor | tuple[Tensor, object]) -> Tensor:
    """The output of an ESPnet encoder; those with intermediate CTC return a tuple, whose first part it is."""
    return frames[0] if isinstance(frames, tuple) else frames


class EncoderChain(nn.Module):
    """An ESPnet encoder followed by an ESPnet post-encoder."""

    def __init__(self, encoder: nn.Module, postencoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.postencoder = postencoder

    def forward(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, None]:
        """(B, T, 80) -> (B, F, D_enc)."""
        frames, lengths, _ = self.encoder(feats, lengths)
        return *self.postencoder(final(frames), lengths), None


class ESPnetBestowModel(BestowModel, AbsESPnetModel):
    """BestowModel with a loss, named in the YAML as ``model: bestow``.

    The loss of a batch is [(1 - w) * CE + w * CTC + a * A + t * T] / N: sums over the batch, N its answer tokens. N is
    also the returned weight, so that ESPnet's weighted mean over processes is exactly the loss of the global batch.
    In CE, a row counts as often as its task's weight says.

    Args:
        encoder, connector, llm, features: see BestowModel. ``llm`` may be None when ``ctc_weight`` is 1 (encoder
            pre-training) or when only statistics are collected.
        policy: draws the rule for ``visible`` in training.
        ctc_head: Linear from encoder frames to the CTC vocabulary; its last class is blank. None without CTC.
        ctc_weight: w.
        lsm_weight: label smoothing of the cross-entropy.
        alignment_weight: a, of the loss that teaches the connector's last block where the tokens of a transcript
            were said (see :mod:`.alignment`); counts for answers that are their ``src_text``. Needs CTC.
        tasks: task names whose losses are reported one by one.
        task_weights: how much the answers of a task count, 1 where nothing is said. The tasks that take longest to
            learn can have a larger share of what is learned than they have of the data.
    """

    task_weights: Tensor  # (tasks,)

    def __init__(  # noqa: PLR0913 (the last ones are the keys of model_conf)
        self,
        features: Features,
        encoder: nn.Module,
        connector: Connector | None,
        llm: CausalLM | None,
        policy: Policy,
        ctc_head: nn.Linear | None = None,
        ctc_weight: float = 0.0,
        lsm_weight: float = 0.0,
        alignment_weight: float = 0.0,
        teacher: BestowModel | None = None,
        teacher_weight: float = 1.0,
        tasks: Sequence[str] = (),
        task_weights: Mapping[str, float] | None = None,
    ):
        super().__init__(encoder, connector, llm, features)  # type: ignore[arg-type]
        if not 0.0 <= ctc_weight <= 1.0:
            raise ValueError(f"model_conf: ctc_weight={ctc_weight} must be between 0 and 1")
        if alignment_weight > 0.0 and not (ctc_weight > 0.0 and isinstance(connector, CrossAttentionConnector | None)):
            raise ValueError(
                f"model_conf: alignment_weight={alignment_weight} needs ctc_weight > 0, which finds the words, and "
                f"connector: cross_attention, whose attention it teaches; got ctc_weight={ctc_weight}, "
                f"{type(connector).__name__}"
            )
        self.policy = policy
        self.ctc = ctc_head
        self.ctc_weight = ctc_weight
        self.lsm_weight = lsm_weight
        self.alignment_weight = alignment_weight
        self._teacher = (teacher and teacher.eval().requires_grad_(False),)  # in a tuple: no part of this module
        self.teacher_weight = teacher_weight
        self.tasks = tuple(tasks)
        self.register_buffer("task_weights", _weights_of(self.tasks, task_weights or {}), persistent=False)

    def encode(self, waveform: Tensor, lengths: Tensor) -> Speech:
        """See BestowModel."""
        speech = super().encode(waveform, lengths)
        return Speech(final(speech.frames), speech.lengths)

    def encode_extracted(self, feats: Tensor, lengths: Tensor) -> Speech:
        """:meth:`encode` from what :meth:`Features.extract` makes of a waveform: feats (B, T, 80), lengths (B,)."""
        assert isinstance(self.features, Features)
        frames, frame_lengths, _ = self.encoder(*self.features.refine(feats, lengths))
        return Speech(final(frames), frame_lengths)

    def collect_feats(self, speech: Tensor, speech_lengths: Tensor, **_: Tensor) -> dict[str, Tensor]:
        """Statistics for global_mvn."""
        assert isinstance(self.features, Features)
        feats, lengths = self.features.extract(speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}

    def forward(  # noqa: PLR0913 (ESPnet passes a batch by the names of its data)
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        prompt: Tensor,
        prompt_lengths: Tensor,
        src_text: Tensor | None = None,
        src_text_lengths: Tensor | None = None,
        task: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, Stats, Tensor]:
        """speech (B, S); text, prompt, src_text (B, U) ids padded with -1; task (B, 1) -> loss, stats, weight."""
        assert isinstance(self.features, Features)
        first, recording = recordings(speech, speech_lengths)
        heard = self.features.surround(speech[first], speech_lengths[first])
        each = self.encode(*heard)  # once, however many rows are about it: the encoder is a large part of a step
        encoded = Speech(each.frames[recording], each.lengths[recording])
        tokens = text_lengths.sum().to(encoded.frames.dtype)
        loss = encoded.frames.new_zeros(())
        stats: Stats = {}
        if self.ctc_weight > 0.0:
            if src_text is None or src_text_lengths is None or self.ctc is None:
                raise ValueError(f"ctc_weight={self.ctc_weight} needs the data name src_text (transcripts)")
            ctc = ctc_loss_sum(self.ctc(encoded.frames), encoded.lengths, src_text, src_text_lengths) / tokens
            stats["loss_ctc"] = ctc.detach()
            stats["ctc_too_long"] = too_long(encoded.lengths, src_text, src_text_lengths).sum().to(ctc.dtype)
            loss = loss + self.ctc_weight * ctc
        if self._teacher[0] is not None:
            distance = self._distance_to_teacher(each, *heard)[recording].sum() / tokens
            stats["loss_teacher"] = distance.detach()
            loss = loss + self.teacher_weight * distance
        if self.ctc_weight < 1.0:
            # A bound that is known without looking at tensors: no waiting for the GPU, nor for frames nobody sees.
            policy = InChunks(self.policy, chunks_of(self.encoder, self.features))
            state = ModelState(self.connector.start(encoded.before(policy.reach(text.shape[1]))), None)
            watched = state.connector.watch() if self._aligns(state.connector) else None
            rule = policy.rule(len(text), text.device)
            losses, correct = self._answer_losses(
                state, rule, encoded.lengths, prompt, prompt_lengths, text, text_lengths
            )
            answer = self._weighted(losses.sum(1), task).sum() / tokens
            stats["loss_llm"] = answer.detach()
            stats["acc"] = correct.sum() / tokens
            stats.update(self._task_losses(losses.detach().sum(1), text_lengths, task))
            loss = loss + (1.0 - self.ctc_weight) * answer
            if watched is not None and src_text is not None and src_text_lengths is not None:
                said = is_transcript(text, text_lengths, src_text, src_text_lengths)
                align = self._alignment_loss(watched, encoded, said, prompt_lengths, src_text, src_text_lengths)
                stats["loss_align"] = align.detach() / tokens
                loss = loss + self.alignment_weight * align / tokens
        stats["loss"] = loss.detach()
        return force_gatherable((loss, stats, tokens), loss.device)

    def _distance_to_teacher(self, encoded: Speech, speech: Tensor, lengths: Tensor) -> Tensor:
        """The mean squared distance to the teacher's frames, summed over those of each recording, (B,)."""
        teacher = self._teacher[0]
        assert teacher is not None
        with torch.no_grad():
            theirs = teacher.to(speech.device).encode(speech, lengths)
        widths = theirs.frames.shape[2], encoded.frames.shape[2]
        if widths[0] != widths[1]:
            raise ValueError(f"the teacher's frames are {widths[0]} wide, those of the encoder {widths[1]}")
        # Down-sampling rounds differently at the end.
        shared = torch.minimum(theirs.lengths, encoded.lengths)
        if int((theirs.lengths - encoded.lengths).abs().max()) > LENGTHS_DIFFER:
            lengths_found = f"{theirs.lengths.tolist()} and {encoded.lengths.tolist()}"
            raise ValueError(f"teacher and encoder differ in their frame rate: they make {lengths_found} frames")
        width = int(shared.max())
        distance = (theirs.frames[:, :width] - encoded.frames[:, :width]).square().mean(2)  # (B, F)
        inside = torch.arange(width, device=shared.device) < shared[:, None]
        return distance.masked_fill(~inside, 0.0).sum(1)

    def _aligns(self, state: ConnectorState) -> TypeGuard[CrossAttentionState]:
        return self.alignment_weight > 0.0 and isinstance(state, CrossAttentionState)

    def _alignment_loss(
        self,
        watched: WatchedSpeech,
        encoded: Speech,
        said: Tensor,
        prompt_lengths: Tensor,
        src_text: Tensor,
        src_text_lengths: Tensor,
    ) -> Tensor:
        """Sum over the tokens of the rows ``said`` (B,) of what alignment_losses says."""
        assert self.ctc is not None
        rows = said.nonzero()[:, 0]
        lengths, target, target_lengths = encoded.lengths[rows], src_text[rows], src_text_lengths[rows]
        spans = ctc_spans(self.ctc(encoded.frames[rows].detach()), lengths, target, target_lengths)
        columns = torch.arange(target.shape[1], device=rows.device)
        columns = (prompt_lengths[rows, None] - 1 + columns).clamp(max=watched.visible.shape[1] - 1)  # (R, N)
        chosen = WatchedSpeech(watched.keys[rows], watched.values[rows])
        chosen.query = watched.query[rows[:, None], :, columns].transpose(1, 2)  # (R, H, N, D)
        chosen.visible = watched.visible[rows].gather(1, columns)
        return alignment_losses(chosen.weights(), chosen.visible, spans).sum()

    def _answer_losses(
        self,
        state: ModelState,
        rule: Rule,
        lengths: Tensor,
        prompt: Tensor,
        prompt_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and correctness of every answer token, (B, A) with 0 at padding; lengths (B,) of the speech."""
        ids, mask = join(prompt, prompt_lengths, text, text_lengths)
        visible = rule(answer_index(mask, prompt_lengths), mask, lengths)
        # Only columns in which some row predicts an answer token need logits.
        first = int(prompt_lengths.min()) - 1
        keep = torch.arange(first, ids.shape[1], device=ids.device)
        logits = self.step(ids, mask, visible, state, keep)  # (B, U - first, V)
        column = (prompt_lengths - 1 - first)[:, None] + torch.arange(text.shape[1], device=ids.device)
        logits = logits.gather(1, column.clamp(max=logits.shape[1] - 1)[..., None].expand(-1, -1, logits.shape[2]))
        each = F.cross_entropy(
            logits.transpose(1, 2), text, ignore_index=-1, label_smoothing=self.lsm_weight, reduction="none"
        )
        return each, (logits.detach().argmax(-1) == text) & (text >= 0)

    def _weighted(self, sums: Tensor, task: Tensor | None) -> Tensor:
        """The losses (B,) of rows, each times its task's weight."""
        return sums if task is None or not self.tasks else sums * self.task_weights[task[:, 0]]

    def _task_losses(self, sums: Tensor, lengths: Tensor, task: Tensor | None) -> Stats:
        """Mean loss of each task in the batch, NaN for absent ones: every process must report the same keys."""
        if task is None or not self.tasks:
            return {}
        members = task[:, :1] == torch.arange(len(self.tasks), device=task.device)  # (B, tasks)
        each = (members * sums[:, None]).sum(0) / (members * lengths[:, None]).sum(0)
        return {f"loss_{name}": value for name, value in zip(self.tasks, each, strict=True)}


def _weights_of(tasks: Sequence[str], weights: Mapping[str, float]) -> Tensor:
    """One weight for each task; names that no data has, and negative weights, are errors."""
    unknown = sorted(set(weights) - set(tasks))
    if unknown:
        known = ", ".join(tasks) or "no task"
        raise ValueError(f"model_conf: task_weights names {', '.join(unknown)}; the data has {known}")
    for name, weight in weights.items():
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"model_conf: task_weights: {name}: {weight} is no weight; it must be 0 or more")
    return torch.tensor([float(weights.get(name, 1.0)) for name in tasks])


def recordings(speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Which neighbouring rows hold different instructions about one recording?

    Batches sorted by length bring such rows together.

    Args:
        speech: (B, S).
        lengths: (B,).

    Returns:
        the first row (R,) of each of R recordings, and which recording (B,) each row is about.
    """
    repeats = (lengths[1:] == lengths[:-1]) & (speech[1:] == speech[:-1]).all(1)
    recording = torch.cat([repeats.new_zeros(1), ~repeats]).cumsum(0)
    return torch.cat([repeats.new_ones(1), ~repeats]).nonzero()[:, 0], recording


def join(prompt: Tensor, prompt_lengths: Tensor, text: Tensor, text_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Prompt and answer of each row, one after the other, right-padded, without the last token (nothing follows it).

    Args:
        prompt: (B, P) ids.
        prompt_lengths: (B,).
        text: (B, A) ids.
        text_lengths: (B,).

    Returns:
        ids (B, U) with 0 at padding, and mask (B, U).
    """
    lengths = prompt_lengths + text_lengths - 1
    column = torch.arange(int(lengths.max()), device=prompt.device).expand(len(lengths), -1)
    after = column - prompt_lengths[:, None]
    answer = text.gather(1, after.clamp(0, text.shape[1] - 1))
    ids = torch.where(after < 0, prompt.gather(1, column.clamp(max=prompt.shape[1] - 1)), answer)
    mask = column < lengths[:, None]
    return ids.masked_fill(~mask, 0), mask


def is_transcript(text: Tensor, text_lengths: Tensor, src_text: Tensor, src_text_lengths: Tensor) -> Tensor:
    """Which rows answer with exactly what was said (and the end token), (B,) bool.

    Args:
        text: (B, A) ids, padded with -1.
        text_lengths: (B,).
        src_text: (B, N) ids, padded with -1.
        src_text_lengths: (B,).
    """
    width = min(text.shape[1], src_text.shape[1])
    inside = torch.arange(width, device=text.device) < src_text_lengths[:, None]
    same = ((text[:, :width] == src_text[:, :width]) | ~inside).all(1)
    return same & (text_lengths == src_text_lengths + 1)


def ctc_loss_sum(logits: Tensor, lengths: Tensor, target: Tensor, target_lengths: Tensor) -> Tensor:
    """CTC loss summed over the batch; the last class is blank.

    A target longer than its frames has no alignment and contributes 0 (see :func:`too_long`).

    Args:
        logits: (B, F, C).
        lengths: (B,).
        target: (B, N) ids.
        target_lengths: (B,).
    """
    logp = logits.float().log_softmax(-1).transpose(0, 1)
    blank = logits.shape[-1] - 1
    return F.ctc_loss(
        logp, target.clamp(min=0), lengths, target_lengths, blank=blank, reduction="sum", zero_infinity=True
    )


def too_long(lengths: Tensor, target: Tensor, target_lengths: Tensor) -> Tensor:
    """Which rows have fewer frames than CTC needs: one for each token, one more between two that are equal.

    Args:
        lengths: (B,) frames.
        target: (B, N) ids.
        target_lengths: (B,).

    Returns:
        (B,) bool.
    """
    inside = torch.arange(1, target.shape[1], device=target.device) < target_lengths[:, None]
    repeats = ((target[:, 1:] == target[:, :-1]) & inside).sum(1)
    return target_lengths + repeats > lengths
