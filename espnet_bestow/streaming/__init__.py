"""Speech that is still arriving: listeners hear it, policies decide, sessions turn it into words."""
