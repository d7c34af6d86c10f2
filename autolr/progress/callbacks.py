"""What sees a run happen: the one interface of views, trackers and tests."""

from __future__ import annotations

from autolr.progress.jobs import Running


class Callback:
    """Sees a search happen. Every method may be overridden; none does anything."""

    def phase(self, name: str, total: int, done: int) -> None:
        """A phase begins that ends with `total` jobs, `done` of which are there from before."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def stepped(self, running: list[Running], capacity: int) -> None:
        """All slots took a step."""

    def ended(self, running: Running) -> None:
        """A job ended."""

    def looked(self, state: object) -> None:
        """So far are the workers of a search, an `autolr.progress.state.State`; not called where there is but one."""
