"""Text without audio, so that a small language model can learn both languages beforehand."""

from random import Random

from espnet_bestow.corpus.commands import Command
from espnet_bestow.corpus.grammar import english, german
from espnet_bestow.corpus.plan import SentencePool
from espnet_bestow.corpus.tasks import INSTRUCTIONS, QUESTIONS

# Of 50 lines: 21 English and 21 German sentences, 3 commands, 2 command frames, 3 instructions.
_CYCLE = ("en",) * 21 + ("de",) * 21 + ("command",) * 3 + ("frame",) * 2 + ("instruction",) * 3


def _instructions() -> list[str]:
    families = [*INSTRUCTIONS.values(), *QUESTIONS.values()]
    return [instruction for family in families for instruction in family]


def lm_lines(rng: Random, count: int, pool: SentencePool, commands: list[Command]) -> list[str]:
    """Return `count` lines in random order.

    Args:
        rng: Decides everything.
        count: How many lines.
        pool: Knows the sentences of the speech splits (and of earlier calls), and avoids them.
        commands: Those that may be used; give the train commands.
    """
    instructions = _instructions()
    draw = {
        "en": lambda: english(pool.draw(rng)),
        "de": lambda: german(pool.draw(rng)),
        "command": lambda: rng.choice(commands).text,
        "frame": lambda: rng.choice(commands).frame,
        "instruction": lambda: rng.choice(instructions),
    }
    lines = [draw[_CYCLE[index % len(_CYCLE)]]() for index in range(count)]
    rng.shuffle(lines)
    return lines
