"""Default instructions for data directories that name a task but bring no ``prompt`` file."""

_LANGUAGES = {
    "ar": "arabic", "bn": "bengali", "ca": "catalan", "cs": "czech", "cy": "welsh",
    "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish",
    "et": "estonian", "fa": "persian", "fi": "finnish", "fr": "french", "he": "hebrew",
    "hi": "hindi", "hu": "hungarian", "id": "indonesian", "it": "italian", "ja": "japanese",
    "ko": "korean", "lv": "latvian", "mn": "mongolian", "nl": "dutch", "no": "norwegian",
    "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sl": "slovenian",
    "sv": "swedish", "sw": "swahili", "ta": "tamil", "tr": "turkish", "uk": "ukrainian",
    "ur": "urdu", "vi": "vietnamese", "zh": "chinese",
}  # fmt: skip

_FIXED = {
    "asr": "transcribe the speech",
    "command": "give the command frame",
}

_FORMS = "asr, asr_<language>, ast_<source>-<target>, command"


class TaskError(ValueError):
    """A task without a default instruction."""


def default_prompt(task: str) -> str:
    """Instruction in words for a task name such as ``asr_en`` or ``ast_en-de``.

    Raises:
        TaskError: The task has no instruction of its own (in spoken question answering the
            question is the instruction), or a language code is unknown.
    """
    kind, _, languages = task.partition("_")
    if task in _FIXED:
        return _FIXED[task]
    if kind == "asr" and languages:
        return f"transcribe the {_language(languages, task)} speech"
    source, dash, target = languages.partition("-")
    if kind == "ast" and source and dash and target:
        _language(source, task)
        return translation_prompt(target, task)
    raise TaskError(f"task '{task}' has no default prompt: write a prompt file (known: {_FORMS})")


def translation_prompt(target: str, task: str = "ast") -> str:
    """Instruction to translate into the language of a code, e.g. ``de``."""
    return f"translate to {_language(target, task)}"


def _language(code: str, task: str) -> str:
    if code not in _LANGUAGES:
        known = " ".join(sorted(_LANGUAGES))
        raise TaskError(f"task '{task}': unknown language '{code}' (known: {known})")
    return _LANGUAGES[code]
