"""What may be asked about an utterance: instructions in words, and the exact answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from espnet_bestow.corpus.commands import Command
from espnet_bestow.corpus.grammar import Clause, english, english_phrase, german

INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    "asr_en": (
        "transcribe the english speech",
        "write down the english speech",
        "what does the english speaker say",
    ),
    "asr_de": (
        "transcribe the german speech",
        "write down the german speech",
        "what does the german speaker say",
    ),
    "ast_en-de": (
        "translate to german",
        "translate the english speech to german",
        "say it in german",
    ),
    "ast_de-en": (
        "translate to english",
        "translate the german speech to english",
        "say it in english",
    ),
    "command": (
        "give the command frame",
        "what is the command",
        "write the command as action object room",
    ),
}

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "who": ("who does it", "who is doing it", "name who does it"),
    "what": ("what is the object", "who or what is it done to", "name the object"),
    "where": ("where is it", "where does it happen", "name the place"),
    "when": ("when is it", "when does it happen", "name the time"),
}


@dataclass(frozen=True)
class Example:
    """One task on one utterance: what is asked and what the answer is."""

    task: str
    prompt: str
    answer: str


def question_answers(clause: Clause) -> dict[str, str]:
    """Answer every question that the clause answers; in English whatever was spoken."""
    answers = {"who": english_phrase(clause.subject), "what": english_phrase(clause.object)}
    if clause.place:
        answers["where"] = clause.place.en
    if clause.time:
        answers["when"] = clause.time.en
    return answers


def _example(rng: Random, task: str, answer: str) -> Example:
    return Example(task, rng.choice(INSTRUCTIONS[task]), answer)


def transcript(clauses: tuple[Clause, ...], language: str) -> str:
    """Say the clauses one after the other in `language` ("en" or "de")."""
    say = {"en": english, "de": german}[language]
    return " ".join(say(clause) for clause in clauses)


def sentence_examples(rng: Random, clauses: tuple[Clause, ...], language: str) -> list[Example]:
    """Ask for the transcript and the translation."""
    other = {"en": "de", "de": "en"}[language]
    return [
        _example(rng, f"asr_{language}", transcript(clauses, language)),
        _example(rng, f"ast_{language}-{other}", transcript(clauses, other)),
    ]


def question_example(rng: Random, clause: Clause) -> Example:
    """Ask for one constituent."""
    answers = question_answers(clause)
    kind = rng.choice(sorted(answers))
    return Example("sqa", rng.choice(QUESTIONS[kind]), answers[kind])


def command_examples(rng: Random, command: Command) -> list[Example]:
    """Ask for the frame and for the transcript of a spoken command."""
    return [_example(rng, "command", command.frame), _example(rng, "asr_en", command.text)]
