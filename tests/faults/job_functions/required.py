"""Jobs with a user's code around them: what they see of packages and modules."""

import importlib
import importlib.metadata
import os
import sys

from activities.jobs.child import ThisJob
from job_functions.words import Trial, Tried


def versions(request: Trial, job: ThisJob) -> Tried:
    """Of packages as they are imported here, and where from; and what the job's environment holds of pip's."""
    found = {name: importlib.import_module(name).__version__ for name in request.values["packages"]}
    modules = {name: str(importlib.import_module(name).__file__) for name in request.values.get("modules", ())}
    pip = sorted(name for name in os.environ if name.startswith("PIP_"))
    return Tried(values={"versions": found, "modules": modules, "prefix": sys.prefix, "pip": pip, "pid": os.getpid()})
