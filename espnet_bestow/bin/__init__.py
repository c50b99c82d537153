"""Commands of the package: argument parsing around what the other rooms do."""
