"""Tiny random LLM checkpoints written to disk and read back through the real loading code."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SENTENCES = [
    "transcribe the english speech",
    "translate to german",
    "the small dog sees three red birds in the garden today",
    "heute sieht der kleine hund drei rote vögel im garten",
    "turn on the light in the kitchen",
]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_tokenizer(path: Path, vocab_size: int = 120) -> PreTrainedTokenizerFast:
    """A BPE tokenizer trained on a few sentences, with a chat template."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<pad>", "\n"]
    core.train_from_iterator(SENTENCES * 4, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(path)
    return tokenizer


def write_llm(path: Path, family: str = "llama", seed: int = 0) -> Path:
    """A tiny random causal LM of the given family (llama, qwen2, gpt2) with its tokenizer; returns the directory."""
    tokenizer = write_tokenizer(path)
    torch.manual_seed(seed)
    vocab = len(tokenizer)
    small = {"vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    wide = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    builders = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**small, **wide)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**small, **wide, tie_word_embeddings=True)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**small, n_embd=32, n_layer=2, n_head=4, n_positions=128)),
    }
    model = builders[family]()
    # Larger than the usual 0.02, so that a tiny random LLM has opinions that a test can compare.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    return path
