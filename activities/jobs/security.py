"""Dask's TLS: one certificate per deployment, the same for every role, or those of a cluster that was there before."""

from pathlib import Path

from distributed import Security

from everloop import errors
from everloop.settings import Settings


def security(settings: Settings) -> Security:
    """Dask's TLS from the files that the settings name, else from `keys_dir/dask.pem`: who holds it runs code, so
    nobody else may read it. Raises `Unavailable`.
    """
    pem = str(settings.keys_dir / "dask.pem")
    said = {"ca": settings.dask_ca, "cert": settings.dask_cert, "key": settings.dask_key}
    files = {part: path or said["cert" if part == "key" else part] or pem for part, path in said.items()}
    for path in dict.fromkeys(files.values()):
        if not Path(path).exists():
            hint = "`everloop up` makes it" if path == pem else "EVERLOOP_DASK_CA, _CERT and _KEY name the files"
            raise errors.Unavailable(f"Dask's certificate {path} is missing", hint=hint)
    roles = {
        f"tls_{role}_{part}": files[part] for role in ("scheduler", "worker", "client") for part in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=files["ca"], **roles)
