"""Users' YAML, read by the safe loader, with a limit on what aliases expand to."""

from typing import Any

import yaml

from .errors import InputError
from .messages import shown
from .reading import check_plain

MOST_NODES = 100_000  # in a document with its aliases expanded


def parse_yaml(text: str, location: str) -> Any:
    """The value of a YAML document; None of an empty one. Errors name `location`.

    Raises:
        InputError: not YAML, a value that its tag does not fit, aliases that contain themselves or stand for more than
            MOST_NODES values, more levels or digits than a JSON text may have, numbers that are not finite.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None and _nodes(node, {}) > MOST_NODES:
            raise InputError(
                f"{location}: more than {MOST_NODES} values; expected fewer, aliases counted as what they mean"
            )
        value = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise InputError(f"{location}: not YAML: {_reason(error)}") from error
    except RecursionError as error:
        raise InputError(f"{location}: more levels of lists and mappings in each other than can be read") from error
    except InputError:
        raise
    except (ValueError, KeyError, AttributeError, IndexError, TypeError, OverflowError) as error:
        raise InputError(f"{location}: not YAML: a number, date or tagged value is malformed") from error
    finally:
        if loader is not None:
            loader.dispose()
    check_plain(value, location)
    return value


def _nodes(node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
    """The number of values in the node with its aliases expanded. known: the counts so far, None of a parent."""
    if node in known:
        count = known[node]
        if count is None:
            raise yaml.YAMLError(f"an alias contains itself, line {node.start_mark.line + 1}")
        return count
    known[node] = None
    count = 1
    if isinstance(node, yaml.CollectionNode):
        for part in node.value:
            count += sum(_nodes(each, known) for each in (part if isinstance(part, tuple) else (part,)))
    known[node] = count
    return count


def _reason(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None:
        return shown(" ".join(str(error).split()), 120)
    line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
    context = "" if error.context_mark is None else f", in what begins in line {error.context_mark.line + 1}"
    return shown(error.problem, 120) + line + context
