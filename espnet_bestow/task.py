"""BestowTask: how ESPnet sees BESTOW (choices, options, building).

Frontend, SpecAugment, normalisation, pre-encoder, encoder and post-encoder are ASRTask's own choices plus ours, so a
YAML that trains an ESPnet ASR model names the same parts here.
"""

import argparse
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.asr.preencoder.abs_preencoder import AbsPreEncoder
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.iterators.sequence_iter_factory import RawSampler
from espnet2.layers.abs_normalize import AbsNormalize
from espnet2.tasks import asr
from espnet2.tasks.abs_task import IteratorOptions, optim_classes
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.initialize import initialize
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.train.class_choices import ClassChoices
from torch import distributed as dist
from torch import nn

from espnet_bestow.audio import hertz
from espnet_bestow.collate import SmallByValue
from espnet_bestow.connectors import CONNECTORS, Connector
from espnet_bestow.datadir.directory import read_table
from espnet_bestow.encoders import (
    ConvSubsampling,
    FastConformerEncoder,
    FullWindowWhisperEncoder,
    HFWhisperEncoder,
    RunningMVN,
    StreamingFastConformerEncoder,
    WhisperLogMelFrontend,
)
from espnet_bestow.encoders.chain import EncoderChain
from espnet_bestow.encoders.depthwise import quicken_depthwise
from espnet_bestow.encoders.features import Features
from espnet_bestow.espnet_model import ESPnetBestowModel
from espnet_bestow.llm.causal_lm import CausalLM, FrozenCausalLM
from espnet_bestow.llm.lora import LoRACausalLM
from espnet_bestow.llm.tokenizer import load_tokenizer
from espnet_bestow.model_dir import locate, read_config
from espnet_bestow.muon import Muon, by_kind
from espnet_bestow.preprocess import BestowPreprocessor
from espnet_bestow.process_group import leave_group
from espnet_bestow.prompt import TEMPLATES, PromptTemplate, build_template
from espnet_bestow.recordings import costs_of_texts, remember_recordings, share, whole_recordings
from espnet_bestow.silence import SilenceAround
from espnet_bestow.trainer import BestowTrainer
from espnet_bestow.visibility import OfflinePolicy, WaitKPolicy
from espnet_bestow.yaml_numbers import with_numbers

# Copies: ESPnet's own tables stay as they are for everyone else in the process.
frontend_choices = ClassChoices(
    "frontend",
    {**asr.frontend_choices.classes, "whisper_log_mel": WhisperLogMelFrontend},
    type_check=AbsFrontend,
    default="default",
)
normalize_choices = ClassChoices(
    "normalize",
    {**asr.normalize_choices.classes, "running_mvn": RunningMVN},
    type_check=AbsNormalize,
    default="utterance_mvn",
    optional=True,
)
silence_choices = ClassChoices("silence", {"around": SilenceAround}, optional=True)
preencoder_choices = ClassChoices(
    "preencoder",
    {**asr.preencoder_choices.classes, "conv1d": ConvSubsampling},
    type_check=AbsPreEncoder,
    optional=True,
)
encoder_choices = ClassChoices(
    "encoder",
    {
        **asr.encoder_choices.classes,
        "fastconformer": FastConformerEncoder,
        "hf_whisper": HFWhisperEncoder,
        "hf_whisper_full_window": FullWindowWhisperEncoder,
        "streaming_fastconformer": StreamingFastConformerEncoder,
    },
    type_check=AbsEncoder,
    default="conformer",
)
connector_choices = ClassChoices("connector", CONNECTORS, type_check=Connector, default="cross_attention")
llm_choices = ClassChoices(
    "llm", {"full": CausalLM, "frozen": FrozenCausalLM, "lora": LoRACausalLM}, type_check=CausalLM, default="full"
)
policy_choices = ClassChoices("policy", {"offline": OfflinePolicy, "wait_k": WaitKPolicy}, default="offline")
template_choices = ClassChoices("template", TEMPLATES, type_check=PromptTemplate, default="chat")
model_choices = ClassChoices("model", {"bestow": ESPnetBestowModel}, default="bestow")

optim_classes["muon"] = Muon  # a new name in ESPnet's table: its parser and its configurations read no other

# Arguments of a class that the task supplies, which therefore are no keys of a *_conf.
_SUPPLIED = {
    "silence": {"rate"},
    "encoder": {"input_size"},
    "postencoder": {"input_size"},
    "connector": {"text_dim", "speech_dim", "text_layers"},
    "template": {"tokenizer", "max_tokens"},
    "model": {"features", "encoder", "connector", "llm", "policy", "ctc_head", "tasks"},
}
_EXTRA = {"template": {"max_length"}, "model": {"extract_feats_in_collect_stats"}}


class BestowTask(ASRTask):
    """ASRTask with a connector and an LLM in place of decoder, joint network and token list."""

    trainer = BestowTrainer
    class_choices_list = [
        frontend_choices,
        silence_choices,
        asr.specaug_choices,
        normalize_choices,
        model_choices,
        preencoder_choices,
        encoder_choices,
        asr.postencoder_choices,
        connector_choices,
        llm_choices,
        policy_choices,
        template_choices,
    ]

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """ASRTask's options, and ours in a group of their own."""
        super().add_task_arguments(parser)
        group = parser.add_argument_group(description="BESTOW")
        group.add_argument(
            "--default_prompt",
            type=str,
            default="transcribe the speech",
            help="Instruction of utterances for which the data has no 'prompt' entry",
        )
        group.add_argument(
            "--tasks",
            type=str,
            nargs="*",
            default=None,
            help="Task names that the 'task' data may hold; default: those found in the data",
        )
        # ASRTask's default would have ESPnet tokenise; the LLM's tokenizer does. Named here, a token list is the
        # vocabulary of the auxiliary CTC instead of the LLM's.
        parser.set_defaults(token_list=None, use_preprocessor=True, token_type="bpe")
        # ESPnet's default, folded, wants a --fold_length; and sorted batches bring rows about one recording together.
        parser.set_defaults(batch_type="sorted")
        parser.set_defaults(required=["output_dir"])

    @classmethod
    def main(cls, args: argparse.Namespace | None = None, cmd: Sequence[str] | None = None) -> None:
        """The whole program, with the numbers of the options as people write them (8e-4)."""
        if args is None:
            args = cls.get_parser().parse_args(cmd)
        for name, value in vars(args).items():
            if name.endswith("_conf"):
                setattr(args, name, with_numbers(value))
        super().main(args)

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """What each process does, to its safe end."""
        super().main_worker(args)
        leave_group()

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """What every data set must have."""
        return ("speech",) if inference else ("speech", "text")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """What it may have: instruction, transcript for CTC, task name for per-task losses."""
        return ("prompt",) if inference else ("prompt", "src_text", "task")

    @classmethod
    def build_preprocess_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Callable[[str, dict[str, Any]], dict[str, np.ndarray]] | None:
        """Runs in the data-loader workers."""
        encode, rate = _transcript_encoder(args), cls.sample_rate(args)
        template, tasks = cls.build_template(args), cls.task_names(args)
        return BestowPreprocessor(train, template, args.default_prompt, tasks, encode, rate)

    @classmethod
    def build_sequence_iter_factory(
        cls, args: argparse.Namespace, iter_options: IteratorOptions, mode: str
    ) -> AbsIterFactory:
        """As in ASRTask, but rows about the same recording stay together: in a batch, and in the share of a process.

        Only batches that are counted in rows are cut anew: those that are counted in samples may fill the memory.
        """
        world, rank = (dist.get_world_size(), dist.get_rank()) if iter_options.distributed else (1, 0)
        undivided = dataclasses.replace(iter_options, distributed=False)
        if iter_options.distributed:
            args = argparse.Namespace(**{**vars(args), "min_batch_size": max(args.min_batch_size, world)})
        factory = super().build_sequence_iter_factory(args, undivided, mode)
        recording_of = remember_recordings(factory.dataset)
        batches = factory.sampler.batches
        if iter_options.batch_type == "sorted":
            # ESPnet sorts all rows as those of a batch, and reverses the batches if they are to go the other way.
            step = 1 if args.sort_in_batch == args.sort_batch else -1
            rows = list(itertools.chain(*batches[::step]))
            batches = whole_recordings(rows, len(batches), recording_of, world)[::step]
        cost_of = costs_of_texts(factory.dataset)
        factory.sampler = RawSampler([share(batch, rank, world, recording_of, cost_of) for batch in batches])
        factory.collate_fn = SmallByValue(factory.collate_fn)
        return factory

    @classmethod
    def build_template(cls, args: argparse.Namespace) -> PromptTemplate:
        """The prompt template of the configured LLM."""
        _check_conf("template", TEMPLATES[args.template], args.template_conf)
        return build_template(args.template, _llm_path(args), **args.template_conf)

    @classmethod
    def sample_rate(cls, args: argparse.Namespace) -> int:
        """What the model hears, in Hz."""
        return hertz(args.frontend_conf.get("fs", 16000))

    @classmethod
    def task_names(cls, args: argparse.Namespace) -> tuple[str, ...]:
        """Task names in the order of their index; found in the data where not given."""
        if getattr(args, "tasks", None) is None:
            data = [getattr(args, f"{phase}_data_path_and_name_and_type", None) or [] for phase in ("train", "valid")]
            paths = [path for phase in data for path, name, *_ in phase if name == "task"]
            rows = [(path, uid, task) for path in paths for uid, task in read_table(Path(path)).items()]
            if nameless := [f"{path}: utterance {uid!r} has no task" for path, uid, task in rows if not task]:
                raise ValueError(nameless[0])
            args.tasks = sorted({task for _, _, task in rows})
        return tuple(args.tasks)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> ESPnetBestowModel:
        """The model that a configuration describes.

        Collecting statistics needs the frontend only, and pre-training the encoder with CTC alone needs no LLM: what
        is not needed is not built.
        """
        if args.token_list is not None and args.model_conf.get("alignment_weight", 0.0) > 0.0:
            raise ValueError(
                f"model_conf: alignment_weight={args.model_conf['alignment_weight']} compares transcripts with answers "
                "token by token, so both need the LLM's tokens: leave out token_list"
            )
        for choices in cls.class_choices_list:
            name = getattr(args, choices.name, None)
            if name is not None:
                _check_conf(choices.name, choices.get_class(name), getattr(args, f"{choices.name}_conf"))
        frontend, size = cls._build_frontend(args)
        model_conf = {k: v for k, v in args.model_conf.items() if k not in _EXTRA["model"]}
        teacher = model_conf.pop("teacher", None)
        policy = policy_choices.get_class(args.policy)(**args.policy_conf)
        if getattr(args, "collect_stats", False):
            # ESPnet builds an optimizer even then, and an optimizer wants a parameter.
            parts = Features(frontend), nn.Linear(1, 1), None, None, policy
            return ESPnetBestowModel(*parts, tasks=cls.task_names(args), **model_conf)
        features = Features(
            frontend,
            specaug=_build(asr.specaug_choices, args),
            normalize=_build(normalize_choices, args),
            preencoder=_build_preencoder(args, size),
            silence=_build(silence_choices, args, rate=cls.sample_rate(args)),
        )
        if features.preencoder is not None:
            size = features.preencoder.output_size()
        encoder, size = cls._build_encoder(args, size)
        ctc_head = None
        if model_conf.get("ctc_weight", 0.0) > 0.0:
            ctc_head = nn.Linear(size, _ctc_vocabulary(args) + 1)
        connector = llm = None
        if model_conf.get("ctc_weight", 0.0) < 1.0:
            llm = llm_choices.get_class(args.llm)(**{"path": _llm_path(args), **args.llm_conf})
            choice = connector_choices.get_class(args.connector)
            connector = choice.beside(llm.width, llm.depth, size, **args.connector_conf)
        model_conf["teacher"] = cls.build_model_from_file(*locate(teacher))[0] if teacher else None
        model = ESPnetBestowModel(
            features, encoder, connector, llm, policy, ctc_head, tasks=cls.task_names(args), **model_conf
        )
        if args.init is not None:
            initialize(model.encoder, args.init)
        return model

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: nn.Module) -> list[torch.optim.Optimizer]:
        """ESPnet's, and ``optim: muon``, which wants to know what parameters are."""
        if args.optim != "muon":
            return super().build_optimizers(args, model)
        for option in ("exclude_weight_decay", "sharded_ddp"):
            if getattr(args, option, False):
                raise ValueError(f"{option}: true does not go with optim: muon")
        llm = getattr(model, "llm", None)
        outputs = [getattr(model, "ctc", None), llm and llm.model.get_output_embeddings()]
        return [Muon(by_kind(model, outputs), **args.optim_conf)]

    @classmethod
    def _build_frontend(cls, args: argparse.Namespace) -> tuple[nn.Module | None, int]:
        if args.frontend is None:  # ESPnet's whisper, wav2vec2, hubert, beats take waveforms
            return None, args.input_size or 1
        if args.input_size is not None:
            raise ValueError(
                f"input_size={args.input_size} beside frontend: {args.frontend}; BESTOW reads waveforms, not features "
                "from files, and with frontend: null the encoder takes them"
            )
        frontend = _build(frontend_choices, args)
        return frontend, frontend.output_size()

    @classmethod
    def _build_encoder(cls, args: argparse.Namespace, size: int) -> tuple[nn.Module, int]:
        encoder = _build(encoder_choices, args, input_size=size)
        quicken_depthwise(encoder)
        size = encoder.output_size()
        postencoder = _build(asr.postencoder_choices, args, input_size=size)
        if postencoder is None:
            return encoder, size
        return EncoderChain(encoder, postencoder), postencoder.output_size()

    @classmethod
    def build_model_from_file(
        cls, config_file: Path | str | None = None, model_file: Path | str | None = None, device: str = "cpu"
    ) -> tuple[ESPnetBestowModel, argparse.Namespace]:
        """Model and configuration of a finished training; a checkpoint of another configuration is an error."""
        if config_file is None:
            if model_file is None:
                raise ValueError("build_model_from_file needs a config_file or a model_file")
            config_file = Path(model_file).parent / "config.yaml"
        config = read_config(config_file)
        # Not get_default_config: it reads sys.argv, which belongs to whichever program loads the model.
        defaults = vars(cls.get_parser().parse_args([]))
        args = argparse.Namespace(**{**defaults, **config})
        args.model_conf.pop("teacher", None)  # was needed for training only
        model = cls.build_model(args)
        # What training froze by name is not in the checkpoint if it belongs to the LLM.
        for prefix in args.freeze_param:
            for name, parameter in model.named_parameters():
                if name == prefix or name.startswith(prefix + "."):
                    parameter.requires_grad = False
        if model_file is not None:
            load_checkpoint(model, model_file)
        return model.to(device), args


def load_checkpoint(model: nn.Module, path: Path | str) -> None:
    """Loads weights (tensors only); one clear error if they are of another configuration."""
    state = safe_torch_load(path, map_location="cpu")
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise RuntimeError(f"{path} does not fit this configuration: {' '.join(lines)[:400]}") from error


def _build(choices: ClassChoices, args: argparse.Namespace, **supplied: Any) -> Any:
    """The configured object of a choice, or None where the choice is switched off."""
    name = getattr(args, choices.name, None)
    if name is None:
        return None
    return choices.get_class(name)(**supplied, **getattr(args, f"{choices.name}_conf"))


def _build_preencoder(args: argparse.Namespace, size: int) -> Any:
    """ESPnet wants the input size of its pre-encoders in the YAML; here the frontend's is the default."""
    if args.preencoder is None:
        return None
    cls = preencoder_choices.get_class(args.preencoder)
    supplied = {"input_size": size} if "input_size" in inspect.signature(cls).parameters else {}
    return cls(**{**supplied, **args.preencoder_conf})


def _check_conf(choice: str, cls: type, conf: dict[str, Any]) -> None:
    """An unknown key is an error that lists the known ones."""
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = (set(parameters) - _SUPPLIED.get(choice, set())) | _EXTRA.get(choice, set())
    unknown = sorted(set(conf) - known)
    if unknown:
        raise ValueError(f"{choice}_conf: unknown key {', '.join(unknown)}; {cls.__name__} knows {sorted(known)}")


def _llm_path(args: argparse.Namespace) -> str:
    path = args.llm_conf.get("path")
    if not path:
        raise ValueError("llm_conf: path is missing; it names a directory or hub id of a causal LM")
    return str(path)


def _transcript_encoder(args: argparse.Namespace) -> Callable[[str], list[int]] | None:
    """ESPnet's own tokens for CTC where a token list is given; None leaves it to the LLM's tokenizer."""
    if args.token_list is None:
        return None
    from espnet2.text.build_tokenizer import build_tokenizer
    from espnet2.text.token_id_converter import TokenIDConverter

    tokenizer = build_tokenizer(args.token_type, bpemodel=args.bpemodel, g2p_type=args.g2p)
    converter = TokenIDConverter(args.token_list)
    return lambda text: list(converter.tokens2ids(tokenizer.text2tokens(text)))


def _ctc_vocabulary(args: argparse.Namespace) -> int:
    if args.token_list is None:
        return len(load_tokenizer(_llm_path(args)))
    if isinstance(args.token_list, str):
        # ESPnet keeps the list itself in config.yaml, so that a model can be moved without its token file.
        args.token_list = Path(args.token_list).read_text("utf-8").splitlines()
    return len(args.token_list)
