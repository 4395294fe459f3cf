"""Alembic's migrations of the store; ``store/schema.py`` runs them without an alembic.ini."""
