"""Servers that sample: what runs them, what they are told, and the proof that they have it (docs/vllm.md).

Its samplers stand beside the engine's once this is imported, so that `parse` is to be had from here.
"""

from modicum.engine.samplers import SAMPLERS, parse
from modicum.serving.members import Served, Vllm

__all__ = ["Served", "Vllm", "parse"]

SAMPLERS |= {cls.name: cls for cls in (Vllm, Served)}
