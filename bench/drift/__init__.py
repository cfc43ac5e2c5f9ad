"""What the watch costs, and whether the loop that it closes is worth it, on data that moved by itself.

`python -m bench.drift`; the folder has no other door.
"""
