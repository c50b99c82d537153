"""Instructions and answers as token ids: one place for the template, truncation, the end token and length errors.

Training and decoding call the same object, so a model can never meet a prompt in another shape than it learned.
The label mask follows from the split: everything in ``prompt`` is context, everything in ``answer`` is a label.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from espnet_bestow.llm.tokenizer import context_length, load_config, load_tokenizer

_REMEMBERED = 4096
"""Instructions and texts whose ids a template keeps: most corpora have a few phrasings for all their utterances, and
all rows about a recording have its transcript."""


class PromptError(ValueError):
    """An instruction or answer that cannot be given to the LLM; names the utterance and the value."""


def asked_in_text(prompt: str, transcript: str) -> str:
    """An instruction about a transcript, which stands where speech stands: before it."""
    return f"{transcript}\n{prompt}".strip()


@dataclass(frozen=True)
class Example:
    """Token ids of one example."""

    prompt: list[int]
    answer: list[int]  # closed by the end token


class _Remembered(dict[str, list[int]]):
    """What is made of a text, made once; the last few thousand of them."""

    def __init__(self, make: Callable[[str], list[int]]):
        super().__init__()
        self._make = make

    def __missing__(self, text: str) -> list[int]:
        if len(self) >= _REMEMBERED:
            self.clear()
        self[text] = made = self._make(text)
        return made


class PromptTemplate(ABC):
    """Base of what a YAML names under ``template``.

    Args:
        tokenizer: the LLM's tokenizer.
        max_tokens: prompt and answer together may not be longer (the LLM's context); None is unlimited.
        max_prompt_tokens: longer instructions are cut to this many tokens before the template is put around them,
            so that the template itself always survives; None never cuts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
    ):
        if tokenizer.eos_token_id is None:
            raise PromptError(f"tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token")
        self.tokenizer = tokenizer
        self.end: int = tokenizer.eos_token_id
        self.max_tokens = max_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self._rendered = _Remembered(self._render)
        self._texts = _Remembered(self.tokenize)
        self._decode = _decoder(tokenizer)

    @abstractmethod
    def render(self, prompt: str) -> list[int]:
        """Token ids of everything before the answer."""

    def encode_prompt(self, prompt: str, uid: str = "") -> list[int]:
        """Ids of the instruction in its template; an error if it leaves no room for an answer."""
        ids = list(self._rendered[prompt])
        # At least one answer token and the end token must still fit.
        if self.max_tokens is not None and len(ids) + 2 > self.max_tokens:
            raise PromptError(
                f"utterance {uid!r}: the prompt has {len(ids)} tokens and leaves no room for an answer in the LLM's "
                f"context of {self.max_tokens}: {_short(prompt)!r}"
            )
        return ids

    def encode(self, prompt: str, answer: str, uid: str = "") -> Example:
        """Ids of prompt and answer; an error if the answer is empty or both together are too long."""
        if not answer.strip():
            raise PromptError(f"utterance {uid!r}: the answer text is empty")
        before = self.encode_prompt(prompt, uid)
        ids = [*self.ids(answer), self.end]
        if self.max_tokens is not None and len(before) + len(ids) > self.max_tokens:
            raise PromptError(
                f"utterance {uid!r}: a prompt of {len(before)} tokens and an answer of {len(ids)} exceed the LLM's "
                f"context of {self.max_tokens} tokens: {_short(answer)!r}"
            )
        return Example(before, ids)

    def check(self, prompt: str, answer: str, uid: str = "") -> None:
        """Raises PromptError where :meth:`encode` would."""
        self.encode(prompt, answer, uid)

    def decode(self, ids: list[int]) -> str:
        """Words of an answer."""
        return self._decode(ids).strip()

    def _render(self, prompt: str) -> list[int]:
        return self.render(self._cut(prompt))

    def _cut(self, prompt: str) -> str:
        if self.max_prompt_tokens is None:
            return prompt
        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
        if len(ids) <= self.max_prompt_tokens:
            return prompt
        return str(self.tokenizer.decode(ids[: self.max_prompt_tokens]))

    def ids(self, text: str) -> list[int]:
        """Ids of what is said or answered."""
        return list(self._texts[text])

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text alone."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


class PlainTemplate(PromptTemplate):
    """``template: plain``: start token, the instruction, a line break. For LLMs without a chat format."""

    def render(self, prompt: str) -> list[int]:
        """See base class."""
        start = self.tokenizer.bos_token_id
        return ([] if start is None else [start]) + self.tokenize(prompt + "\n")


class ChatTemplate(PromptTemplate):
    """``template: chat``: the tokenizer's own chat template, with thinking switched off where a model has it."""

    def render(self, prompt: str) -> list[int]:
        """See base class."""
        if self.tokenizer.chat_template is None:
            raise PromptError(
                f"tokenizer {self.tokenizer.name_or_path!r} has no chat template; use template: plain or inst"
            )
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return self.tokenize(str(text))


class InstTemplate(PromptTemplate):
    """``template: inst``: the form of the authors' released configuration, with its system sentence."""

    system = "Please answer the following based on the previous speech feature."

    def render(self, prompt: str) -> list[int]:
        """See base class."""
        return self.tokenize(f"[INST]\n<<SYS>>\n{self.system}\n<</SYS>>\n\n{prompt}[/INST] ")


TEMPLATES: dict[str, type[PromptTemplate]] = {
    "plain": PlainTemplate,
    "chat": ChatTemplate,
    "inst": InstTemplate,
}


def build_template(name: str, path: str, max_length: int | None = None, **options: int | None) -> PromptTemplate:
    """Template ``name`` for the LLM at ``path`` (a directory or hub id).

    Args:
        name: one of TEMPLATES.
        path: where the tokenizer comes from.
        max_length: longest example in tokens; default: the LLM's own context.
        **options: further arguments of the template class.
    """
    if name not in TEMPLATES:
        raise ValueError(f"template={name!r} is not known; known: {', '.join(TEMPLATES)}")
    limits = [n for n in (max_length, context_length(load_config(path))) if n is not None]
    return TEMPLATES[name](load_tokenizer(path), max_tokens=min(limits, default=None), **options)


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """``tokenizer.decode`` without special tokens.

    While text is written live, it is decoded after every token, and the library's checks of what it is given take
    longer than that.
    """
    usual = (
        isinstance(tokenizer, PreTrainedTokenizerFast) and type(tokenizer)._decode is PreTrainedTokenizerFast._decode
    )
    plain = usual and not tokenizer.clean_up_tokenization_spaces
    decode: Callable[..., Any] = tokenizer.backend_tokenizer.decode if plain else tokenizer.decode
    return partial(decode, skip_special_tokens=True)
