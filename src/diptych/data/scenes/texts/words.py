"""The words that signs say: short, common on signs, each of three to six letters."""

from __future__ import annotations

_LIST = """
open shut stop exit push pull sale taxi bank cafe hotel music pizza bread water north south
danger school market garden museum office ticket closed street bridge castle harbor police doctor
milk soup cake fish rice salt corn meat beer wine lunch fruit honey sugar pepper cheese butter tomato
east west left right hall room gate door desk lift stairs ramp park pool lake river beach
shop toys book news art film radio phone paper print photo copy mail post parcel stamp
fast slow free new old hot cold wet dry clean quiet loud high low short large small best fresh
bus tram train boat ferry plane cycle walk drive turn wait start finish enter leave
gold silver iron steel wood glass stone brick paint tool nail rope chain
"""
ALL = tuple(_LIST.split())
LONGEST = 6  # letters of a word
