"""Artifacts in, one self-contained HTML page out: `findings.py` is what a stage leaves for it, `page.py` reads and writes."""
