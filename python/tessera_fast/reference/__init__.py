"""The oracle: every op and every packing rule written from its formula, for reading and judging.

It imports nothing that it judges: no extension, no packing code, only the seams' dataclasses.
"""
