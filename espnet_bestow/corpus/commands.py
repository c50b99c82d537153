"""Spoken commands for a house, in English: many wordings of one frame, e.g. "on light kitchen"."""

from dataclasses import dataclass
from itertools import product

ROOMS = ("kitchen", "bedroom", "garage", "office", "bathroom", "hall")
DEVICES = ("light", "radio", "heater", "fan")
OPENINGS = ("door", "window", "curtain", "gate")

_DEVICE_WORDINGS = {
    "on": ("turn on the {thing}", "switch on the {thing}", "turn the {thing} on"),
    "off": ("turn off the {thing}", "switch off the {thing}", "turn the {thing} off"),
}
_OPENING_WORDINGS = {
    "open": ("open the {thing}", "open up the {thing}"),
    "close": ("close the {thing}", "shut the {thing}"),
}


@dataclass(frozen=True)
class Command:
    """What is said and the frame it stands for."""

    text: str
    frame: str


def all_commands() -> list[Command]:
    """List every command: 96 frames in 4 to 6 wordings each."""
    commands = []
    for wordings, things in ((_DEVICE_WORDINGS, DEVICES), (_OPENING_WORDINGS, OPENINGS)):
        for action, thing, room in product(wordings, things, ROOMS):
            for opening, wording in product(("", "please "), wordings[action]):
                text = f"{opening}{wording.format(thing=thing)} in the {room}"
                commands.append(Command(text, f"{action} {thing} {room}"))
    return commands
