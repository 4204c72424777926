"""Where the repository, the helpers of the tests and data beside the repository are."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
TESTS = HELPERS.parent
REPOSITORY = TESTS.parent
SHARED = REPOSITORY.parent / "shared"  # real tiles and golden outputs, where they are
