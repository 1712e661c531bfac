"""Run by alembic, on the connection that `batching.migration` hands over."""

from __future__ import annotations

from alembic import context

from batching.migration import VERSION_TABLE
from batching.models import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
    compare_server_default=False,
)
context.run_migrations()
