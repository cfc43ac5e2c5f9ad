"""What a client asks for people: a way into the console, and keys."""

from everloop.client.connection import Connection
from everloop.client.shapes import one


class IdentityCalls(Connection):
    """The part of `Client` that speaks of people."""

    def login_url(self) -> str:
        """A one-time link that signs a browser in."""
        return str(one(self._api("POST", "/login-links"))["url"])

    def credential(self, person: str) -> str:
        """A new key that stands for *person*."""
        return str(one(self._api("POST", "/credentials", json={"person": person}))["key"])
