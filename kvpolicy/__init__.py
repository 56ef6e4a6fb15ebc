"""."""
POLICIES = {"continuum": None}
