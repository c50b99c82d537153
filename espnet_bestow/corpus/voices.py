"""The speakers: variants of the synthesiser's voice; four of them are heard in test_unseen only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Voice:
    """A speaker; `variant` is the synthesiser's name for it (empty: its plain voice)."""

    variant: str
    sex: str

    @property
    def speaker(self) -> str:
        """Speaker id, safe as the prefix of utterance ids."""
        return self.variant.lower() or "default"


_FEMALE = ("Andrea", "Annie", "aunty", "f1", "f2", "f3", "f4", "f5", "linda", "steph")
_MALE = (
    *("", "Alex", "Denis", "Hugo", "Jacky", "Lee", "Marco", "Michael", "Mike", "klatt2"),
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"),
)
_HELD_OUT = ("Annie", "Michael", "f4", "m7")

VOICES = tuple([Voice(name, "female") for name in _FEMALE] + [Voice(name, "male") for name in _MALE])
UNSEEN_VOICES = tuple(voice for voice in VOICES if voice.variant in _HELD_OUT)
SEEN_VOICES = tuple(voice for voice in VOICES if voice.variant not in _HELD_OUT)
