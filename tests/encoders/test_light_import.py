"""Importing the package of encoders costs nothing until one is asked for."""

import subprocess
import sys

import pytest

import espnet_bestow.encoders


def test_import_is_light():
    probe = (
        "import sys, espnet_bestow.encoders; "
        "print([m for m in ('torch', 'transformers', 'espnet2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name():
    with pytest.raises(AttributeError, match="'Conformer'"):
        espnet_bestow.encoders.Conformer  # noqa: B018
