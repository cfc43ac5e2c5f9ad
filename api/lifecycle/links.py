"""Where a lifecycle is: its addresses here, and in Temporal's own UI."""

from urllib.parse import quote

from api.dependencies import Parts


def links(here: Parts, id: str, *, gate: bool, data: bool, search: bool = False) -> dict[str, str]:  # noqa: A002
    """Where else to look."""
    found = {
        "self": api_url(id),
        "page": page_url(id),
        "events": f"{api_url(id)}/events",
        "logs": f"{api_url(id)}/logs",
        "metrics": f"{api_url(id)}/metrics",
        "temporal": temporal_url(here, id),
    }
    found |= {"data": f"/data/{quote(id)}"} if data else {}
    found |= {"search": f"/search/{quote(id)}", "trials": f"{api_url(id)}/trials"} if search else {}
    return found | ({"approval": approval_url(id)} if gate else {})


def temporal_url(here: Parts, workflow_id: str) -> str:
    """The workflow in Temporal's own UI."""
    settings = here.settings
    return (
        f"{settings.temporal_ui_url}/namespaces/{settings.temporal_namespace}/workflows/{quote(workflow_id, safe='')}"
    )


def page_url(id: str) -> str:  # noqa: A002
    return f"/lifecycles/{quote(id)}"


def approval_url(id: str) -> str:  # noqa: A002
    return f"/approvals/{quote(id)}"


def api_url(id: str) -> str:  # noqa: A002
    return f"/api/v1/lifecycles/{quote(id)}"
