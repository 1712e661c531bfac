"""As small as they can be. Django and the queue share one database, so that they can share a transaction."""

import os

from sqlalchemy.engine import make_url

_url = make_url(os.environ["BATCHING_DATABASE_URL"])

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "only-for-this-example")
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["newsletter"]
ROOT_URLCONF = "newsletter.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": f"django.db.backends.{_url.get_backend_name()}",  # sqlite3 for `sqlite`
        "NAME": _url.database,
        "USER": _url.username or "",
        "PASSWORD": _url.password or "",
        "HOST": _url.host or _url.query.get("host", ""),
        "PORT": _url.port or "",
    }
}
