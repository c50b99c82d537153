"""The built-in corpus: an exact English/German grammar, rendered as speech, with its tasks."""
