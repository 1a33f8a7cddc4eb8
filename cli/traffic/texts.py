"""What is asked: random words, random token ids, or the questions of a ShareGPT-format dataset.

Which tokens the server makes of a text is not known here. A `Ruler` is made of what the server counted for the
requests of the warm-up, and texts are cut, and answers measured, by it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random

from cli.failures import CommandError
from cli.traffic.settings import Texts
from cli.workload import exchanges

TOKENS_PER_CHARACTER = 0.25
# Short and usual, so that most tokenizers have a token for each.
_SPOKEN = (
    "about above after again answer apple around ask autumn away baby back ball bank basket bear beach "
    "bell best better big bird blue boat body book both bottle box boy bread bridge bright bring brother "
    "brown build busy cake call camp car careful cat chair change child city class clean clear clock "
    "close cloud coat cold color come cook corner count country cow cup dance dark day deep dinner dog "
    "door draw dream dress drink drive dry duck each ear early earth east easy eat edge egg empty evening "
    "every eye face fall family far farm fast father field find fire fish five floor flower fly follow "
    "food foot forest four fresh friend fruit full game garden girl give glass gold good grass green "
    "ground grow half hand happy hard hat head hear heart heavy help high hill hold home horse hot hour "
    "house hundred ice idea inside island join juice jump keep key kind king kitchen knee know lake land "
    "large last late laugh leaf learn leave left letter light line lion listen little live long look lost "
    "lot loud love low lunch make map market meat meet middle milk minute moment money month moon morning "
    "mother mountain mouth move music name near neck never new next nice night nine noise north nose "
    "number ocean often old once one open orange other outside page paint paper park part party pass past "
    "path people person picture piece place plan plant play point pool poor present pretty pull push "
    "queen question quick quiet rain read ready red rest rice rich right ring river road rock room round "
    "run safe sail salt same sand school sea season seat second see seed seven shape ship shoe shop short "
    "show sing sister sit six skin sky sleep slow small smile snow soft song soon sound south space "
    "spring stand star start station stay step stone stop store storm story street strong summer sun "
    "sweet swim table tail talk tall tea teach tell ten thank thing think three time today together town "
    "train travel tree turn two under valley village visit voice wait walk wall warm wash watch water way "
    "week west wheel white wide wind window winter wish woman wood word work world write year yellow "
    "young"
)
WORDS = _SPOKEN.split()


@dataclass(frozen=True, slots=True)
class Question:
    """One request: its prompt, as text or token ids, and how many tokens to generate at most."""

    prompt: str | list[int]
    num_output: int


@dataclass(frozen=True, slots=True)
class Ruler:
    """How many tokens of the server's are in a text."""

    tokens_per_character: float = TOKENS_PER_CHARACTER

    @classmethod
    def of(cls, counted: Sequence[tuple[int, int]]) -> "Ruler":
        """From (characters, tokens) of prompts: the slope, so that what a chat template adds does not count."""
        if len({characters for characters, _ in counted}) < 2:
            return cls()
        (short, few), (long, many) = min(counted), max(counted)
        return cls((many - few) / (long - short)) if many > few else cls()

    def tokens(self, text: str) -> int:
        return max(1, round(len(text) * self.tokens_per_character))


def probes(texts: Texts, count: int) -> list[Question]:
    """Requests for a warm-up: a short one, a long one, and so on. They are not among `questions`."""
    source = Random(f"warm-up {texts.seed}")
    sizes = islice(cycle((64, 512)), count)
    if texts.vocab_size is not None:
        return [Question(_ids(source, texts.vocab_size, size // 4), 8) for size in sizes]
    if texts.dataset is None:
        return [Question(_words(source, lambda text, size=size: len(text) >= size), 8) for size in sizes]
    pool = "\n".join(f"{question}\n{answer}" for question, answer in exchanges(texts.dataset))
    starts = [source.randrange(max(1, len(pool) - 512)) for _ in range(count)]
    return [
        Question(pool[start : start + size] or pool, 8) for start, size in zip(starts, sizes, strict=False)
    ]


def make_questions(texts: Texts, count: int, ruler: Ruler) -> list[Question]:
    """The same ones for the same seed and ruler. Raises CommandError when a dataset has too few."""
    source = Random(texts.seed)
    if texts.dataset is not None:
        return list(_of_dataset(texts, texts.dataset, count, ruler, source))
    return [_random(texts, ruler, source) for _ in range(count)]


def _random(texts: Texts, ruler: Ruler, source: Random) -> Question:
    length, num_output = source.randint(*texts.input_range), source.randint(*texts.output_range)
    if texts.vocab_size is not None:
        return Question(_ids(source, texts.vocab_size, length), num_output)
    return Question(_words(source, lambda text: ruler.tokens(text) >= length), num_output)


def _of_dataset(texts: Texts, path: Path, count: int, ruler: Ruler, source: Random) -> Iterator[Question]:
    found = [(question, answer) for question, answer in exchanges(path) if question and answer]
    if len(found) < count:
        raise CommandError(
            f"{path} holds {len(found)} exchanges, and {count} were asked for; lower --num-requests"
        )
    source.shuffle(found)
    for question, answer in found[:count]:
        fixed = None if texts.output_len is None else source.randint(*texts.output_range)
        yield Question(question, fixed or ruler.tokens(answer))


def _words(source: Random, enough: Callable[[str], bool]) -> str:
    text = source.choice(WORDS)
    while not enough(text):
        text += " " + source.choice(WORDS)
    return text


def _ids(source: Random, vocab_size: int, length: int) -> list[int]:
    return [source.randrange(vocab_size) for _ in range(length)]
