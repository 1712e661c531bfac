"""An issue, and the batch that mails it, are one transaction of Django's."""

import json
from http import HTTPStatus

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from batching import BatchOptions
from batching.django import joined
from batching.queue_manager import queue_manager
from newsletter.models import Issue


@csrf_exempt  # an API without cookies
@require_POST
def publish(request: HttpRequest) -> JsonResponse:
    """The batch exists if, and only if, the issue does."""
    wanted = json.loads(request.body)
    with transaction.atomic():
        with joined() as session:
            batch = queue_manager.submit(
                "newsletter.mail",
                ((reader, {"subject": wanted["subject"]}) for reader in wanted["readers"]),
                name=wanted["subject"],
                options=BatchOptions(max_attempts=5, failure_budget=0.05),
                session=session,
            )
        issue = Issue.objects.create(subject=wanted["subject"], batch_id=batch.id)
        if not batch.total:
            transaction.set_rollback(True)
            return JsonResponse({"error": "nobody reads it"}, status=HTTPStatus.CONFLICT)
    queue_manager.ring()
    return JsonResponse({"issue": issue.pk, "batch": batch.id}, status=HTTPStatus.CREATED)


@require_GET
def look(request: HttpRequest, number: int) -> JsonResponse:
    """How far it is."""
    del request
    issue = get_object_or_404(Issue, pk=number)
    view = queue_manager.get(issue.batch_id).progress()
    return JsonResponse({"subject": issue.subject, "state": view.state, "mailed": view.succeeded, "of": view.total})
