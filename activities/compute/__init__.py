"""The heavy place: loaded in job children only."""
