"""Lifecycles: submit one, look at them, tell a parked one what to do."""

from fastapi import APIRouter

from api import curves, data, journal, kept, logs
from api.lifecycle import looking, submitting, telling
from api.lifecycle.answers import Attend
from api.lifecycle.links import approval_url, page_url, temporal_url
from api.lifecycle.screens import page

router = APIRouter(tags=["lifecycles"])
router.include_router(submitting.router)
router.include_router(looking.every)
router.include_router(logs.router)
router.include_router(data.router)
router.include_router(curves.router)
router.include_router(kept.router)
router.include_router(journal.router)  # these end in words; the next one takes whatever is left
router.include_router(looking.router)
router.include_router(telling.router)

__all__ = ["Attend", "approval_url", "page", "page_url", "router", "temporal_url"]
