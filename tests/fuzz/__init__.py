"""Campaigns of mutated inputs; each also runs for a moment in the tests."""
