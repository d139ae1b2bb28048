"""Companion of "VMAs: Video-to-Music Generation via Semantic Alignment in Web Music Videos".

Importing this package imports no heavy library; `vmas.model`, `vmas.codec` and the others
import what they need where they need it.
"""

__version__ = "0.1.0"
