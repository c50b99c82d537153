"""A byte-pair tokenizer from one's own text, for recipes that name no pretrained LLM."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# The line break stands between instruction and answer in the plain template.
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "\n")


class TokenizerTrainingError(ValueError):
    """A text from which no faithful tokenizer of the wanted size can be made."""


def train_tokenizer(lines: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """BPE over words that are marked by a leading ``▁``.

    It knows every character of ``lines`` and restores each of them exactly.

    Args:
        lines: text without surrounding white space.
        vocab_size: number of tokens, special ones included; a small text may give fewer.
    """
    alphabet = {"▁", *(character for line in lines for character in line)} - {" "}
    least = len(SPECIAL) + len(alphabet)
    if vocab_size < least:
        raise TokenizerTrainingError(
            f"vocab_size={vocab_size} is too small: the text has {len(alphabet)} characters, "
            f"which with {len(SPECIAL)} special tokens makes {least}"
        )
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(
        lines,
        trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    check_round_trip(tokenizer, lines)
    return tokenizer


def check_round_trip(tokenizer: PreTrainedTokenizerFast, lines: Sequence[str]) -> None:
    """Raises TokenizerTrainingError, naming the first line that does not come back as it was."""
    encoded = tokenizer(list(lines), add_special_tokens=False).input_ids
    for line, text in zip(lines, tokenizer.batch_decode(encoded, skip_special_tokens=True), strict=True):
        if line != text:
            raise TokenizerTrainingError(f"the tokenizer does not restore the line {line!r}: it gives {text!r}")
