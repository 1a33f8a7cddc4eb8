"""`llm serve --config FILE`: options from a YAML file, beneath those of the command line and the environment.

    max-num-seqs: 64            # an option's name, with dashes or underscores
    api_key: [first, second]    # one that may be repeated takes a list, or one value
    models:                     # a name, or options of the engine that hold for this model alone
      - smollm2-135m
      - {model: org/name, dtype: bfloat16}
    default: smollm2-135m

The text is read as YAML's safe subset: nothing in it can name code.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from yaml import MappingNode, Node, SafeLoader, ScalarNode, SequenceNode, YAMLError

from cli.failures import UsageError, file_errors, refused_values
from cli.options import Given, Table, element_type, parts_of
from cli.tables import ENGINE, SERVER
from core.config import DEFAULT_MODEL, EngineConfig
from core.errors import ConfigError
from server.settings import ServerSettings

BOOLEAN, WHOLE, NUMBER, NOTHING = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null"))


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """What a file says; without a file, nothing.

    engine   options that hold for every model
    models   for each model its name and the options that hold for it alone
    default  the model of requests that name none
    """

    path: Path | None = None
    engine: Given = field(default_factory=dict)
    server: Given = field(default_factory=dict)
    models: Sequence[Given] = ()
    default: str | None = None

    def engines(self, models: Sequence[str], given: Given, default: str | None = None) -> list[EngineConfig]:
        """A configuration for each model, that of requests that name none first.

        models   as the command line or the environment names them; they take the place of the file's
        given    options from there, which hold for every model

        Raises UsageError naming the option, or file and key, of what is refused.
        """
        entries: Sequence[Given] = [{"model": name} for name in models] or self.models or [{}]
        found = [self._built(EngineConfig, {**self.engine, **entry}, given) for entry in entries]
        names = [config.model for config in found]
        default = default or self.default or names[0]
        if default not in names:
            raise UsageError(f"--default is {default!r}, which is none of the models: {', '.join(names)}")
        return sorted(found, key=lambda config: config.model != default)

    def settings(self, given: Given) -> ServerSettings:
        """The server's settings. Raises UsageError like `engines`."""
        return self._built(ServerSettings, self.server, given)

    def _built(self, kind: type, mine: Given, given: Given) -> Any:
        with refused_values():
            try:
                return kind(**{**mine, **given})
            except ConfigError as error:
                if error.setting in mine and error.setting not in given:
                    raise UsageError(f"{self.path}: {error}") from error
                raise


def read_config(path: Path | None) -> ConfigFile:
    """The file's content, or that of no file. Raises UsageError naming file, line and key of what is wrong."""
    if path is None:
        return ConfigFile()
    with file_errors(f"read {path}"):
        text = path.read_bytes()
    with _Reader(path, text) as reader:
        return reader.read()


class _Reader:
    """Walks the nodes of a YAML text, which know their lines."""

    def __init__(self, path: Path, text: bytes) -> None:
        self._path = path
        with self._yaml_errors():
            self._loader = SafeLoader(text)

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._loader.dispose()

    def read(self) -> ConfigFile:
        with self._yaml_errors():
            root = self._loader.get_single_node()
        if root is None:
            return ConfigFile(path=self._path)
        known = (*ENGINE.help, *SERVER.help, "models", "default")
        found = self._keys(root, known)
        models, default = found.pop("models", None), found.pop("default", None)
        if models is not None and "model" in found:
            raise self._refused(models, "models and model are both given; write one")
        engine = self._options(ENGINE, found)
        named = [{"model": engine.pop("model")}] if "model" in engine else []
        return ConfigFile(
            path=self._path,
            engine=engine,
            server=self._options(SERVER, found),
            models=named if models is None else self._models(models),
            default=None if default is None else self._text("default", default),
        )

    def _models(self, node: Node) -> list[Given]:
        if not isinstance(node, SequenceNode):
            raise self._refused(node, "models is no list; write one of names, or of options with model")
        if not node.value:
            raise self._refused(node, "models is empty; write names, or options with model, or leave it out")
        return [self._model(entry) for entry in node.value]

    def _model(self, node: Node) -> Given:
        if isinstance(node, ScalarNode):
            return {"model": self._text("models", node)}
        entry = self._options(ENGINE, self._keys(node, tuple(ENGINE.help)))
        if "model" not in entry:
            raise self._refused(node, f"an entry of models has no model, as in  model: {DEFAULT_MODEL}")
        return entry

    def _keys(self, node: Node, known: Sequence[str]) -> dict[str, Node]:
        """The keys of a mapping, with underscores, and their values."""
        if not isinstance(node, MappingNode):
            raise self._refused(node, "expected lines of  option: value")
        found: dict[str, Node] = {}
        for key, value in node.value:
            name = str(key.value).replace("-", "_")
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else "see  llm serve --help"
                raise self._refused(key, f"{key.value!r:.80} is no option; {hint}")
            if name in found:
                raise self._refused(key, f"{name} is given twice")
            found[name] = value
        return found

    def _options(self, table: Table, nodes: Mapping[str, Node]) -> Given:
        hints = get_type_hints(table.source)
        return {name: self._value(name, hints[name], nodes[name]) for name in nodes if name in table.help}

    def _value(self, name: str, hint: Any, node: Node) -> Any:
        """Texts are taken as they are written, so that a revision of digits needs no quotes."""
        if (element := element_type(hint)) is not None:
            entries = node.value if isinstance(node, SequenceNode) else [node]
            return [self._value(name, element, entry) for entry in entries]
        parts = parts_of(hint)
        if bool in parts and node.tag == BOOLEAN:
            return self._loader.construct_object(node)
        if (int in parts and node.tag == WHOLE) or (float in parts and node.tag in (WHOLE, NUMBER)):
            return self._loader.construct_object(node)
        if str in parts:
            return self._text(name, node)
        wanted = "yes or no" if bool in parts else "a number" if float in parts else "a whole number"
        raise self._refused(node, f"{name} is {_shown(node)}; {wanted} is accepted")

    def _text(self, name: str, node: Node) -> str:
        if not isinstance(node, ScalarNode) or node.tag == NOTHING:
            raise self._refused(node, f"{name} is {_shown(node)}; a text is accepted")
        return node.value

    def _refused(self, node: Node, why: str) -> UsageError:
        return UsageError(f"{self._path}, line {node.start_mark.line + 1}: {why}")

    @contextmanager
    def _yaml_errors(self) -> Iterator[None]:
        try:
            yield
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = "" if mark is None else f", line {mark.line + 1}"
            why = getattr(error, "problem", None) or getattr(error, "reason", None) or error
            raise UsageError(f"{self._path}{line}: this is no YAML: {why}") from None


def _shown(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        return f"a {'list' if isinstance(node, SequenceNode) else 'mapping'}"
    return "nothing" if node.tag == NOTHING else f"{node.value!r:.80}"
