"""One thread: the layers here are tiny, and threads only wait for each other. And --layer (layers.py)."""

import signal

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# How long an example takes says nothing on a busy machine.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
# What a script starts in the background ignores SIGINT, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
REPLACED = pytest.StashKey[list]()


def pytest_addoption(parser):
    group = parser.getgroup("align_minimal", "bring your own layer")
    group.addoption(
        "--layer",
        action="append",
        metavar="BLOCK=FILE:NAME",
        help="run the tests that concern BLOCK on NAME of FILE (FILE alone: all blocks that it defines)",
    )
    group.addoption("--layers", action="store_true", help="list the blocks that --layer can replace")


def pytest_cmdline_main(config):
    if config.option.layers:
        from tests.lab import layers

        print(layers.listing())
        return 0


def pytest_configure(config):
    if config.option.layer and not config.option.layers:
        from tests.lab import layers

        config.stash[REPLACED] = layers.replace(config.option.layer)
        if config.option.tbstyle == "auto":  # what layers.py says comes last, and mostly alone
            told = any(replacement.why for replacement in config.stash[REPLACED])
            config.option.tbstyle, config.option.reportchars = "no" if told else "short", ""


def pytest_ignore_collect(collection_path, config):
    if REPLACED in config.stash and collection_path.suffix == ".py":
        from tests.lab import layers

        wanted = {name for layer in config.stash[REPLACED] for name in layers.files(layer.block)}
        return "/".join(collection_path.parts[-2:]) not in wanted or None


def pytest_collection_modifyitems(config, items):
    if REPLACED in config.stash:
        from tests.lab import layers

        chosen = {i for i in items if any(layers.concerns(r.block, i.nodeid) for r in config.stash[REPLACED])}
        config.hook.pytest_deselected(items=[i for i in items if i not in chosen])
        items[:] = [i for i in items if i in chosen]


def pytest_terminal_summary(terminalreporter, config):
    failed = bool(terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"))
    for replacement in config.stash.get(REPLACED, []):
        from tests.lab import layers

        told = layers.summary(replacement, failed)
        if told:
            terminalreporter.section(f"{replacement.block} = {replacement.source}")
            terminalreporter.write_line(told)
    if config.stash.get(REPLACED, []):
        from tests.lab import layers

        terminalreporter.write_line(layers.fallen_back(config.stash[REPLACED]))
