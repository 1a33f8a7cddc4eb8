"""What somebody who writes a plugin gets from us besides the contracts: a package to begin with, and a second look.

    new.py        writes an installable package, one for each kind of plugin, from templates/
    naming.py     which names a package may have, and what is derived from them
    check.py      compares a plugin's sources with a contract version, without running any of them
    reading.py    finds and parses those sources
    modules.py    what a name in them stands for
    versions.py   the contract versions that they are compared with
    lineage.py    which classes are behind a class
    classes.py    classes that keep a contract: their methods and the version that they state
    imports.py    what is imported of us, and whether anybody promised it
    uses.py       calls, assignments and hooks
    findings.py   what was found

Imports nothing of a plugin, and no torch.
"""
