"""One module a revision. Written once: a released migration is never edited."""
