"""What the routes share."""

from dataclasses import dataclass, field
from pathlib import Path
from time import time

from core.engine.async_engine import AsyncEngine
from server.errors import Draining, UnknownModel
from server.settings import ServerSettings


@dataclass
class State:
    """One per app. `draining` turns true once, when the server is asked to stop."""

    engine: AsyncEngine
    settings: ServerSettings
    model_name: str
    created: int = field(default_factory=lambda: int(time()))
    draining: bool = False

    def check_ready(self) -> None:
        """Raises EngineDead or Draining when no request can be taken."""
        self.engine.check_health()
        if self.draining:
            raise Draining

    def check_model(self, asked: str | None) -> None:
        """A request may leave the model out, name it, or spell it as the server's user did.

        Raises UnknownModel.
        """
        if asked is not None and asked not in (self.model_name, self.engine.info.model):
            raise UnknownModel(asked, self.model_name)


def public_name(model: str) -> str:
    """What to call a model that the user called `model`: a path gives its last part, so that none leaks."""
    path = Path(model)
    if path.is_absolute() or path.exists() or model.startswith((".", "~")):
        resolved = path.expanduser().resolve()
        return resolved.stem if resolved.suffix == ".gguf" else resolved.name
    return model
