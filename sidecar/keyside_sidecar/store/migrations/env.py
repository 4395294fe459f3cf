"""Runs the migrations on the connection that ``store/schema.py`` hands over.

The caller's transaction holds all of them: either the whole upgrade is there, or nothing.
"""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
