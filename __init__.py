"""Tokenfab: what would this language model cost on that hardware, and how far can the answer be trusted?"""

__version__ = "0.1.0"
