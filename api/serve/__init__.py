"""The prediction server: answers from approved bytes only, and logs each answer before it sends it.

A process of its own, or several. It follows the route rows; a route whose bytes, decisions or signatures do not fit is
refused, the last good version goes on answering, and `GET /status` says why.
"""

from api.serve.app import create_app

__all__ = ["create_app"]
