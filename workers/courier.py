"""Delivers callbacks: a thread of the manager, which never forks, beside its leader loop.

It takes what is due under a lease, delivers each in a thread of its own, and writes how it went under the fence of that
delivery. Whatever happens in between (the process dies, SQL is away, a receiver hangs), the callback is due again when
the lease is over.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Final

from batching.callbacks import signature_headers
from batching.errors import BatchingError, ConfigurationError, DatabaseUnavailableError
from batching.logs import Log
from batching.policies import callback_delay
from workers.messenger import Messenger
from workers.webhooks import DeliveryError, Rules, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.callbacks import Callback
    from batching.settings import Settings
    from batching.state_manager import BatchStateManager

log = Log("batching.courier")

#: Seconds between two looks for what is due; one statement on an index that is empty when nobody asked to be told.
_LOOK: Final = 0.5
#: And when SQL is away.
_LONG_LOOK: Final = 5.0
#: Deliveries at once: each may wait for its receiver for the whole time limit.
_AT_ONCE: Final = 8
#: Seconds beyond the time limit until a delivery counts as lost: to resolve a name, and to write how it went.
_GRACE: Final = 10.0
#: Characters of an error that are kept.
_ERROR_LIMIT: Final = 500


class Courier:
    """Takes and delivers callbacks while this manager leads. Leading only saves statements: two couriers are correct.

    Args:
        state_manager: Takes and settles them.
        settings: Secrets, limits and what is allowed.
        leads: Whether this process leads.
    """

    def __init__(self, state_manager: BatchStateManager, settings: Settings, leads: Callable[[], bool]) -> None:
        self._state = state_manager
        self._settings = settings
        self._leads = leads
        self._messenger = Messenger(settings.celery_app)
        self._stopping = threading.Event()
        self._rooms = threading.BoundedSemaphore(_AT_ONCE)
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Take nothing more, and give what is on its way some seconds. What takes longer is delivered once more."""
        self._stopping.set()
        until = time.monotonic() + timeout
        for _ in range(_AT_ONCE):
            if not self._rooms.acquire(timeout=max(0.0, until - time.monotonic())):
                return

    def _run(self) -> None:
        pause = _LOOK
        while not self._stopping.wait(pause):
            try:
                pause = _LOOK
                if self._leads():
                    self.turn()
            except DatabaseUnavailableError as error:
                log.warning("database is away", error=str(error))
                pause = _LONG_LOOK
            except Exception:
                log.exception("turn failed")
                pause = _LONG_LOOK

    def turn(self) -> int:
        """Take what is due and there is room for, and begin to deliver it; returns how many."""
        rooms = 0
        while rooms < _AT_ONCE and self._rooms.acquire(blocking=False):
            rooms += 1
        taken: list[Callback] = []
        try:
            if rooms:
                taken = self._state.take_callbacks(rooms, self._settings.webhook_timeout + _GRACE)
        finally:
            for _ in range(rooms - len(taken)):
                self._rooms.release()
        for callback in taken:
            threading.Thread(target=self._deliver, args=(callback,), name="delivery", daemon=True).start()
        return len(taken)

    def _deliver(self, callback: Callback) -> None:
        try:
            self._write(callback, self._try(callback))
        except BatchingError as error:
            log.warning("callback will be delivered again", callback=callback.id, error=str(error))
        except Exception:
            log.exception("callback will be delivered again", callback=callback.id)
        finally:
            self._rooms.release()

    def _try(self, callback: Callback) -> str | None:
        """What went wrong; None: it was delivered."""
        try:
            if callback.is_webhook:
                self._post(callback)
            else:
                self._messenger.send(callback)
        except (DeliveryError, ConfigurationError) as error:
            return str(error)[:_ERROR_LIMIT]
        return None

    def _post(self, callback: Callback) -> None:
        settings = self._settings
        secrets = [secret.get_secret_value() for secret in settings.webhook_secrets]
        if not secrets:
            raise ConfigurationError("webhooks are not sent unsigned: set BATCHING_WEBHOOK_SECRETS where managers run")
        body = json.dumps(callback.document, ensure_ascii=False, separators=(",", ":")).encode()
        headers = signature_headers(secrets, callback.id, int(time.time()), body)
        rules = Rules(settings.webhook_timeout, settings.webhook_allow_http, settings.webhook_allow_private)
        send(callback.target, body, headers, rules)

    def _write(self, callback: Callback, error: str | None) -> None:
        if error is None:
            self._state.callback_delivered(callback)
            return
        delay = callback_delay(callback.attempt, self._settings.callback_attempts, self._settings.callback_backoff)
        self._state.callback_failed(callback, error, delay)
        # Without its target, which may carry a token.
        log.warning("callback failed", callback=callback.id, attempt=callback.attempt, error=error, retry_in=delay)
