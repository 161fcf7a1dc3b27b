"""Commands for the project's own upkeep; not shipped."""
