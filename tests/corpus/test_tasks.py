from random import Random

from espnet_bestow.corpus.commands import Command, all_commands
from espnet_bestow.corpus.grammar import Clause, NounPhrase, draw_clause
from espnet_bestow.corpus.lexicon import ACTORS, PLACES, THINGS, TIMES, VERBS
from espnet_bestow.corpus.tasks import (
    INSTRUCTIONS,
    QUESTIONS,
    command_examples,
    question_answers,
    question_example,
    sentence_examples,
)

CLAUSE = Clause(NounPhrase(ACTORS[0]), VERBS[0], NounPhrase(THINGS[0]), place=PLACES[0], time=TIMES[0])


def test_questions_are_answered_in_english():
    assert question_answers(CLAUSE) == {
        "who": "the dog",
        "what": "the apple",
        "where": "in the garden",
        "when": "today",
    }


def test_a_question_that_the_clause_does_not_answer_is_never_asked():
    rng = Random(0)
    for _ in range(500):
        clause = draw_clause(rng)
        sqa = question_example(rng, clause)
        assert sqa.task == "sqa"
        kind = next(kind for kind, phrasings in QUESTIONS.items() if sqa.prompt in phrasings)
        assert sqa.answer == question_answers(clause)[kind]
        assert clause.place or kind != "where"
        assert clause.time or kind != "when"


def test_examples_of_a_german_sentence():
    examples = {e.task: e for e in sentence_examples(Random(0), (CLAUSE,), "de")}
    assert examples["asr_de"].answer == "heute sieht der hund den apfel im garten"
    assert examples["ast_de-en"].answer == "the dog sees the apple in the garden today"
    assert set(examples) == {"asr_de", "ast_de-en"}


def test_examples_of_joined_sentences():
    examples = {e.task: e.answer for e in sentence_examples(Random(0), (CLAUSE, CLAUSE), "en")}
    assert examples == {
        "asr_en": " ".join(["the dog sees the apple in the garden today"] * 2),
        "ast_en-de": " ".join(["heute sieht der hund den apfel im garten"] * 2),
    }


def test_every_instruction_is_used_and_means_one_task():
    seen = [i for family in (INSTRUCTIONS, QUESTIONS) for texts in family.values() for i in texts]
    assert len(seen) == len(set(seen))
    rng = Random(0)
    used = {
        e.prompt for _ in range(500) for e in [*sentence_examples(rng, (CLAUSE,), "en"), question_example(rng, CLAUSE)]
    }
    assert used >= {*INSTRUCTIONS["asr_en"], *INSTRUCTIONS["ast_en-de"], *QUESTIONS["when"]}


def test_commands():
    commands = all_commands()
    assert Command("turn on the light in the kitchen", "on light kitchen") in commands
    assert Command("please shut the gate in the garage", "close gate garage") in commands
    assert len({command.text for command in commands}) == len(commands)
    assert len({command.frame for command in commands}) == 96
    examples = {e.task: e.answer for e in command_examples(Random(0), commands[0])}
    assert examples == {"command": commands[0].frame, "asr_en": commands[0].text}
