"""What telling people can come to instead. Each message is a sentence, and holds no secret.

Belongs here: the exception that all of this room's are, without anything heavy to import. Does not:
raising it.
"""

from __future__ import annotations


class AlertsError(RuntimeError):
    """Alerts do not reach somebody; the message says why, and what to do."""
