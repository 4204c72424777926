"""Comparing two outputs (`verify`), and checking one by itself (`check`)."""

from .comparison import Comparison, verify
from .selfcheck import Check, check

__all__ = ["Check", "Comparison", "check", "verify"]
