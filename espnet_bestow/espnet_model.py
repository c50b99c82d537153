"""The ESPnet face of the model: loss, stats and weight."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from espnet2.asr.encoder.transformer_encoder import TooShortUttError
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_bestow.alignment import alignment_losses, ctc_spans
from espnet_bestow.connectors import Connector, ConnectorState, Speech
from espnet_bestow.connectors.attention import AttendingState, WatchedSpeech
from espnet_bestow.encoders.chain import final
from espnet_bestow.encoders.chunks import chunks_of
from espnet_bestow.encoders.features import Features
from espnet_bestow.encoders.padding import EncodeBatch, by_length, ignores_padding
from espnet_bestow.errors import BadRowError, rows_named
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.losses import ctc_losses, frame_distance, too_long
from espnet_bestow.model import BestowModel, ModelState
from espnet_bestow.rows import is_transcript, join, recordings
from espnet_bestow.teacher import Teacher
from espnet_bestow.visibility import BehindSilence, InChunks, OfflinePolicy, Policy, Rule, answer_index

Stats = dict[str, Tensor | None]


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
        teacher: a trained model; the encoder learns to make its frames.
        teacher_weight: t.
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
        if alignment_weight > 0.0 and not (ctc_weight > 0.0 and (connector is None or connector.attends)):
            raise ValueError(
                f"model_conf: alignment_weight={alignment_weight} needs ctc_weight > 0, which finds the words, and "
                "connector: cross_attention, per_layer or recurrent, whose attention it teaches; got "
                f"ctc_weight={ctc_weight}, {type(connector).__name__}"
            )
        if connector is not None and connector.hears_all and not isinstance(policy, OfflinePolicy):
            raise ValueError(
                f"policy {type(policy).__name__}: {type(connector).__name__} lets every word hear everything, which is "
                "policy: offline"
            )
        self.policy = policy
        self.ctc = ctc_head
        self.ctc_weight = ctc_weight
        self.lsm_weight = lsm_weight
        self.alignment_weight = alignment_weight
        self.teacher = teacher and Teacher(teacher)
        self.teacher_weight = teacher_weight
        self.tasks = tuple(tasks)
        self.register_buffer("task_weights", _weights_of(self.tasks, task_weights or {}), persistent=False)

    def encode(self, waveform: Tensor, lengths: Tensor) -> Speech:
        """See BestowModel."""
        return self._speech(lambda *batch: self._frames(*self.features(*batch)), waveform, lengths)

    def encode_extracted(self, feats: Tensor, lengths: Tensor) -> Speech:
        """:meth:`encode` from what :meth:`Features.extract` makes of a waveform: feats (B, T, 80), lengths (B,)."""
        refine = self.features.refine
        assert callable(refine)
        return self._speech(lambda *batch: self._frames(*refine(*batch)), feats, lengths)

    def _speech(self, encode: EncodeBatch, batch: Tensor, lengths: Tensor) -> Speech:
        """What ``encode`` makes of a batch (B, N, ...): in training all at once, for answers each row as if alone."""
        at_once = self.training or (ignores_padding(self.features) and ignores_padding(self.encoder))
        return Speech(*(encode(batch, lengths) if at_once else by_length(encode, batch, lengths)))

    def _frames(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """feats (B, T, 80), lengths (B,) -> frames (B, F, D_enc), lengths (B,)."""
        try:
            frames, counts, _ = self.encoder(feats, lengths)
        except TooShortUttError as error:  # the longest row is
            name = type(self.encoder).__name__
            problem = f"{error.actual_size} frames are too few for {name}, which needs {error.limit}"
            raise BadRowError(int(lengths.argmax()), problem) from None
        return final(frames), counts

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
        utt_id: Sequence[str] = (),
        **_: object,
    ) -> tuple[Tensor, Stats, Tensor]:
        """speech (B, S); text, prompt, src_text (B, U) ids padded with -1; task (B, 1); B names in errors.

        Returns loss, stats and weight.
        """
        assert isinstance(self.features, Features)
        words = () if src_text is None or src_text_lengths is None else (src_text, src_text_lengths)
        first, recording = recordings(speech, speech_lengths, *words)
        *heard, quiet = self.features.surround(speech[first], speech_lengths[first])
        with rows_named([utt_id[row] for row in first.tolist()] if utt_id else ()):
            each = self.encode(*heard)  # once, however many rows are about it: the encoder is a large part of a step
        encoded = each.select(recording)
        tokens = text_lengths.sum().to(encoded.frames.dtype)
        loss = encoded.frames.new_zeros(())
        stats: Stats = {}
        if self.ctc_weight > 0.0:
            if src_text is None or src_text_lengths is None:
                raise ValueError(f"ctc_weight={self.ctc_weight} needs the data name src_text (transcripts)")
            losses, over = self._ctc_losses(each, src_text[first], src_text_lengths[first])
            ctc = losses[recording].sum() / tokens
            stats["loss_ctc"], stats["ctc_too_long"] = ctc.detach(), over[recording].sum().to(ctc.dtype)
            loss = loss + self.ctc_weight * ctc
        if self.teacher is not None:
            distance = frame_distance(each, self.teacher(*heard))[recording].sum() / tokens
            stats["loss_teacher"] = distance.detach()
            loss = loss + self.teacher_weight * distance
        if self.ctc_weight < 1.0:
            policy = self._policy_of(encoded, quiet[recording], heard[1][recording])
            # A bound that mostly is known without looking at tensors: no waiting for a GPU, nor for frames nobody sees.
            state = ModelState(self.connector.start(encoded.before(policy.reach(text.shape[1]))), None)
            watched = self._watch(state.connector)
            rule = policy.rule(len(text), text.device)
            with rows_named(utt_id):
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

    def _policy_of(self, speech: Speech, silence: Tensor, samples: Tensor) -> Policy:
        """The policy in the encoder's chunks, which begins behind ``silence`` (B,) of the ``samples`` (B,) heard."""
        assert isinstance(self.features, Features)
        policy = self.policy
        if self.features.silence is not None:
            policy = BehindSilence(policy, (silence * speech.lengths).div(samples, rounding_mode="floor"))
        return InChunks(policy, chunks_of(self.encoder, self.features))

    def _ctc_losses(self, speech: Speech, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Of recordings with words (B, N): the CTC losses, and which have more words than frames, (B,) each."""
        assert self.ctc is not None
        losses = ctc_losses(self.ctc(speech.frames), speech.lengths, words, lengths)
        return losses, too_long(speech.lengths, words, lengths)

    def _watch(self, state: ConnectorState) -> WatchedSpeech | None:
        """Where its attention will be remembered, if it is to be taught."""
        return state.watch() if self.alignment_weight > 0.0 and isinstance(state, AttendingState) else None

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
