"""What a newsletter is to Django."""

from django.db import models


class Issue(models.Model):
    """One issue; its batch mails it to every reader."""

    subject = models.CharField(max_length=200)
    batch_id = models.CharField(max_length=36)

    def __str__(self) -> str:
        return self.subject
