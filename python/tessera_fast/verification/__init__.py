"""Comparing two outputs (`verify`), and checking one by itself (`check`)."""

from .comparison import verify
from .findings import Check
from .report import Comparison
from .selfcheck import check

__all__ = ["Check", "Comparison", "check", "verify"]
