"""The page of cost: what the time was for, budgets, and what stages lease too much or too little of."""

from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from activities.lease_time import KINDS, LEASED
from api import advice, budget, pages
from api.bodies import read_form
from api.budget import BudgetAsked, Name, Scope
from api.cost import By, Pool, Since, moment, view
from api.dependencies import Here, Person
from everloop import names

page = APIRouter(include_in_schema=False)


@page.get("/cost")
def cost_page(
    here: Here, person: Person, by: By = "queue", since: Since = "7d", pool: Pool = names.DEFAULT_POOL
) -> HTMLResponse:
    """The same as a page."""
    now = datetime.now(UTC)
    with here.store.read() as session:
        found = view(session, pool, by, moment(since, now), now)
        budgets, told = budget.seen(session, pool), advice.found(session, pool, now - timedelta(days=30))
    return pages.render(
        "cost.html", person=person, view=found, since=since, kinds=KINDS, leased=LEASED, budgets=budgets, advice=told
    )


@page.post("/cost/budgets/{scope}/{name:path}")
async def budget_by_form(scope: Scope, name: Name, request: Request, here: Here, person: Person) -> Response:
    """The form beside a budget: what is empty is no bound."""
    form = await read_form(request)
    pool = form.get("pool", names.DEFAULT_POOL)
    asked = BudgetAsked(**{each: form[each].strip() or "none" for each in budget.FIELDS.values() if each in form})
    await budget.set_budget(scope, name, here, person, asked, pool)
    return RedirectResponse(f"/cost?pool={quote(pool)}#budgets", 303)
