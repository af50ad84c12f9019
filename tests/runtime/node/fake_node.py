"""A node with the fake processor as a process of its own: ``fake_node.py NOTES --config FILE COMMAND``."""

import sys
from pathlib import Path

from runtime.node.commands import main
from tests.runtime.node.fake_processor import FakeProcessor, opener_of

if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], opener=opener_of(FakeProcessor(Path(sys.argv[1])))))
