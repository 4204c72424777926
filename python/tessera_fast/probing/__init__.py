"""What embeddings are good for: small heads on few labels, beside what they have to beat."""

from .few_labels import probe
from .report import ProbeReport
from .spectrum import rankme

__all__ = ["ProbeReport", "probe", "rankme"]
