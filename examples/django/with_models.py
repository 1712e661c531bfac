"""A handler that uses Django's models: `DJANGO_SETTINGS_MODULE` has to name the settings where workers run."""

import django
from django.db import close_old_connections

from batching import Profile, profile_handler

django.setup()

from newsletter.models import Issue  # noqa: E402 - models can be imported from here on


@profile_handler(name="newsletter.count")
def count(profile: Profile) -> int:
    """How many issues have this subject."""
    close_old_connections()  # as Django does between requests: one may have been cut meanwhile
    return Issue.objects.filter(subject=profile.payload).count()
