"""Dask's TLS: one certificate per deployment, the same for every role."""

from distributed import Security

from everloop import errors
from everloop.settings import Settings


def security(settings: Settings) -> Security:
    """Dask's TLS from `keys_dir/dask.pem`: who holds it runs code, so nobody else may read it. Raises `Unavailable`."""
    pem = settings.keys_dir / "dask.pem"
    if not pem.exists():
        raise errors.Unavailable(f"Dask's certificate {pem} is missing", hint="`everloop up` makes it")
    roles = {f"tls_{role}_{part}": str(pem) for role in ("scheduler", "worker", "client") for part in ("cert", "key")}
    return Security(require_encryption=True, tls_ca_file=str(pem), **roles)
