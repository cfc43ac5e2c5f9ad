"""As the others have them, beside the one that learns."""

from job_functions.trial import family, stay

__all__ = ["family", "stay"]
