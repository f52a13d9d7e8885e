"""Stop services that keep GPUs busy, and start again those that ran when we came."""

import logging

from kata_gpu.act.journal import Journal
from kata_gpu.errors import VerificationError
from kata_gpu.host import Host, services

log = logging.getLogger(__name__)


def stop(host: Host, name: str, journal: Journal) -> None:
    """Note in the ledger that it has to be started again, stop it, verify; idempotent.

    One that does not run is not noted.

    Raises:
        HostError, VerificationError: it runs on, or nobody can say; the ledger names it.
    """
    if not services.read(host, name).is_running:
        return
    journal.update(lambda ledger: ledger.with_service(name))
    services.stop(host, name)
    _require(host, name, running=False)


def start(host: Host, name: str, journal: Journal) -> None:
    """Start what we stopped, verify, and forget it; idempotent.

    One that was uninstalled or masked since is forgotten only.

    Raises:
        HostError, VerificationError: it does not run; the ledger still names it.
    """
    if services.read(host, name).can_start:
        services.start(host, name)
        _require(host, name, running=True)
    else:
        log.warning("service %s is not there any more, so it is not started again", name)
    journal.update(lambda ledger: ledger.without_service(name))


def _require(host: Host, name: str, *, running: bool) -> None:
    found = services.read(host, name)
    if found.is_running is not running:
        what = "start" if running else "stop"
        raise VerificationError(
            f"cannot {what} service {name}: systemd did it, and says that it is "
            f"{found.active_state}; see journalctl -u {name}"
        )
