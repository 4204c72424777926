"""Comparing two outputs (`verify`), and checking one by itself (`check`)."""

from .comparison import Comparison, verify
from .findings import Check
from .selfcheck import check

__all__ = ["Check", "Comparison", "check", "verify"]
