"""What a caller may ask of a text that is pooled, checked once, where it is built."""

from dataclasses import dataclass

from core.errors import RequestError
from core.sampling_params import Range

DIMENSIONS = Range(1, 2**31)


@dataclass(frozen=True, kw_only=True)
class PoolingParams:
    """What to make of a text. None means: as the model was made to.

    dimensions      leading numbers of an embedding that are kept, for models whose embeddings can be cut short
    normalize       scale an embedding to length 1
    use_activation  give probabilities for labels; False: the numbers that the model's head gives

    Raises RequestError naming the parameter, its value and what is accepted.
    """

    dimensions: int | None = None
    normalize: bool | None = None
    use_activation: bool | None = None

    def __post_init__(self) -> None:
        given = self.dimensions
        low, high, _ = DIMENSIONS
        if given is not None and (
            isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high  # pyright: ignore[reportUnnecessaryIsInstance]
        ):
            raise RequestError(
                f"dimensions must be a whole number from {low} to {high}, not {given!r:.80}",
                parameter="dimensions",
            )
        for name in ("normalize", "use_activation"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise RequestError(f"{name} must be true or false, not {value!r:.80}", parameter=name)
