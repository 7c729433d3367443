"""`anymask COMMAND ...`: finds the command, loads its module alone, and turns what goes wrong into an exit code."""

import atexit
import difflib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import anymask
from anymask.cli.commands import DONE, INTERRUPTED, SOME_FAILED, WRONG_USE, Command, messages_shown, one_line, say

# The words of a command: the module that holds it, its name there, and one line for the overview.
COMMANDS: dict[tuple[str, ...], tuple[str, str, str]] = {
    ("segment",): ("segment", "SEGMENT", "points, boxes, masks or text to masks of photos"),
    ("everything",): ("everything", "EVERYTHING", "all masks of photos, by a grid of clicks"),
    ("evaluate", "promptable"): (
        "evaluate",
        "PROMPTABLE",
        "measure a model's clicks, boxes and text on labelled images",
    ),
    ("evaluate", "text"): ("evaluate", "TEXT", "measure how well names become masks, on labelled images"),
    ("train", "promptable"): ("train", "PROMPTABLE", "fine-tune any promptable model on images with masks"),
    ("train", "pocket"): ("train", "POCKET", "train the pocket model on images with masks"),
    ("train", "scorer"): ("train", "SCORER", "fit scorer, quality and a threshold for each name to labelled images"),
    ("train", "text"): ("train", "TEXT", "distil a sentence transformer into the pocket model's text tower"),
    ("teach", "concept"): ("teach", "CONCEPT", "learn a phrase of vectors that finds what masks show"),
    ("teach", "study"): ("teach_study", "STUDY", "embeddings of several classes beside controls and each other"),
    ("teach", "words"): (
        "teach_concepts",
        "WORDS",
        "which words come nearest to a learned concept, and how well they do",
    ),
    ("teach", "inspect"): ("teach_concepts", "INSPECT", "concepts compared, mixed and taken apart, vector by vector"),
    ("export",): ("export", "EXPORT", "a model as ONNX or OpenVINO graphs in a folder, also in int8"),
    ("models",): ("models", "MODELS", "which models there are, what they can do, what is installed"),
    ("models", "pack"): ("models", "PACK", "a model as one file, for a machine without network"),
    ("models", "unpack"): ("models", "UNPACK", "put a packed model where -m finds it"),
    ("models", "verify"): ("verify", "VERIFY", "compare our path with transformers' own on your weights"),
    ("doctor",): ("doctor", "DOCTOR", "what this machine has, what is missing, what to do"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 some inputs failed, 2 wrong use, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        if sys.stdout is not None:  # closed by the shell: `>&-`
            sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else DONE
    except KeyboardInterrupt:
        say("anymask: interrupted before anything was done")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe went away (`anymask ... | head`): no error of ours, and nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    return code


def command() -> None:
    """The command `anymask`: `main`, then out without tearing torch down, which touches another 0.1 GB of memory."""
    code = main()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None where it was closed before the start
            stream.flush()
    os._exit(code)


def _dispatch(words: list[str]) -> int:
    name = max((name for name in COMMANDS if tuple(words[: len(name)]) == name), key=len, default=None)
    if name is not None and not _is_misspelt(name, words):
        return _run(name, words[len(name) :])
    group = tuple(words[:1]) if any(name[0] == words[0] for name in COMMANDS if words) else ()
    following = words[len(group) :]
    if following[:1] == ["--version"]:
        print(f"anymask {anymask.__version__}")
        return DONE
    if following[:1] in (["-h"], ["--help"]):
        print(_overview(group))
        return DONE
    say(_unknown(group, following[0]) if following else _overview(group))
    return WRONG_USE


def _is_misspelt(name: tuple[str, ...], words: list[str]) -> bool:
    """Whether the word after `models` must be one of its own commands, and is none."""
    following = words[len(name) : len(name) + 1]
    has_own = any(other[: len(name)] == name and other != name for other in COMMANDS)
    return has_own and following != [] and not following[0].startswith("-")


def _run(name: tuple[str, ...], words: list[str]) -> int:
    module, attribute, _ = COMMANDS[name]
    command: Command = getattr(import_module(f"anymask.cli.{module}"), attribute)
    args = command.parser(" ".join(name)).parse_intermixed_args(_with_negatives(words))
    try:
        with messages_shown(logging.WARNING if args.json else logging.INFO):
            return command.run(args)
    except BrokenPipeError:
        raise
    except _reported() as error:
        if args.debug:
            traceback.print_exc()
        say(f"anymask {' '.join(name)}: {one_line(error)}")
        return WRONG_USE


def _reported() -> tuple[type[BaseException], ...]:
    """What wrong use raises, looked up after something was raised: help needs no torch."""
    protocol = sys.modules.get("anymask.models.protocol")
    own = () if protocol is None else (protocol.CheckpointError,)
    return (ValueError, TypeError, OSError, ImportError, MemoryError, *own)


def _with_negatives(words: list[str]) -> list[str]:
    """`--point -5,10` as `--point=-5,10`: argparse would take the value for a flag."""
    joined: list[str] = []
    for word in words:
        negative = word[:1] == "-" and word[1:2].isdigit() and "," in word
        if negative and joined and joined[-1] in ("--point", "--box"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _overview(group: tuple[str, ...]) -> str:
    rows = [(" ".join(name), text) for name, (_, _, text) in COMMANDS.items() if name[: len(group)] == group]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        [
            f"usage: anymask {' '.join([*group, 'COMMAND'])} ...",
            "",
            "Segment Anything models: prompt them, teach them, look inside them.",
            "",
            "commands:",
            *(f"  {name.ljust(width)}  {text}" for name, text in rows),
            "",
            "`anymask COMMAND --help` explains a command, with examples; `anymask --version` says which this is.",
        ]
    )


def _unknown(group: tuple[str, ...], word: str) -> str:
    below = (name for name in COMMANDS if name[: len(group)] == group and name != group)
    choices = list(dict.fromkeys(name[len(group)] for name in below))
    near = difflib.get_close_matches(word, choices, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(choices)}"
    where = " ".join(["anymask", *group])
    return f"{where}: unknown command {word!r}: {hint} (see {where} --help)"
