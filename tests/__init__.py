"""The tests, grouped by what they need. A package of its own: a dependency ships a top-level `tests` too."""
