"""People prove who they are: PAM, in a process of its own for each time.

Who runs what::

    worker                    supervisor                     helper
    authenticator.py  ──►     desk.py  ──forks──►            helper.py: transaction.py, shadow.py
        password ──────────────── a socket ────────────────►   PAM
        outcome  ◄─────────────── the same ─────────────────
                              exit code ◄────────────────────

The supervisor never has the password, and counts failures (``limits.py``) by what the helper ends
with, which a worker can't forge.
"""
