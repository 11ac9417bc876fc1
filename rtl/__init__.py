"""Hardware units in SystemVerilog: one folder each, with cycle model, tests and a one-page README.

``units`` finds them; what a folder must hold is in ``rtl/README.md``. The cycle models import neither
a simulator nor cocotb, so that cost models can use them anywhere.
"""
