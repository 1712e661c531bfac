"""Callbacks as Celery tasks: sent by name through the user's own application, so by its own routes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from workers.webhooks import DeliveryError

if TYPE_CHECKING:
    from batching.callbacks import Callback

_DEFAULT_APP: Final = "workers.celery:app"
#: For a broker that is away: a callback waits in SQL better than here.
_BOUNDS: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}
_SOCKET_BOUNDS: Final = {"socket_timeout": 5, "socket_connect_timeout": 3}


class Messenger:
    """Sends tasks. Celery and the application are imported for the first of them: most managers never send one.

    Args:
        name: The application, as `-A` takes it; None for ours.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name or _DEFAULT_APP
        self._app: Any = None

    def send(self, callback: Callback) -> None:
        """Publish the task: its one argument is the callback's document, its id is the callback's.

        Raises:
            DeliveryError: The application cannot be imported, or its broker did not take the task.
        """
        try:
            app = self._application()
            with app.connection_for_write(transport_options=_bounds(app)) as connection:
                app.send_task(
                    callback.target,
                    args=[callback.document],
                    task_id=callback.id,
                    serializer="json",
                    connection=connection,
                    retry=False,
                    ignore_result=True,
                )
        except DeliveryError:
            raise
        except Exception as error:  # whatever kombu's transports and the user's routers raise
            raise DeliveryError(f"the task could not be sent: {type(error).__name__}: {error}") from error

    def _application(self) -> Any:
        if self._app is None:
            from celery.app.utils import find_app  # noqa: PLC0415 - half a second, and most managers never need it

            try:
                found = find_app(self._name)
                if found is None:
                    raise TypeError("there is none")  # noqa: TRY301 - worded with the others, below
            except Exception as error:  # the user's module may do anything
                raise DeliveryError(
                    f"the Celery application {self._name!r} cannot be imported: {type(error).__name__}: {error}; set "
                    "BATCHING_CELERY_APP to what `celery -A` takes"
                ) from error
            self._app = found
        return self._app


def _bounds(app: Any) -> dict[str, Any]:
    url = app.conf.broker_write_url or app.conf.broker_url or ""
    scheme = urlsplit(url if isinstance(url, str) else next(iter(url), "")).scheme
    return {**_BOUNDS, **(_SOCKET_BOUNDS if scheme.startswith(("redis", "valkey", "unix")) else {})}


def where_is(app: Any) -> str | None:
    """Where another process finds an application, as `module:attribute`; None when it is in no importable module."""
    modules: dict[str, Any] = dict(sys.modules)  # a program may put None there
    for name, module in modules.items():
        # Celery remembers the application of this process in modules of its own, which another process has empty.
        if module is None or name.partition(".")[0] in {"__main__", "celery", "kombu"}:
            continue
        for attribute, value in tuple(vars(module).items()):
            if value is app and not attribute.startswith("_"):
                return f"{name}:{attribute}"
    return None
