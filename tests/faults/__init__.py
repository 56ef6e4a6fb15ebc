"""The fault campaign: whole jobs in virtual time, and everything that can go wrong around them."""
