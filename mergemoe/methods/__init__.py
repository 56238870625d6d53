"""The methods of `solve`, one file each, loaded by name; catalogue.py lists them with their groupings and options.

A method's module has `merge(problem, **options) -> list[Merged]`. It returns one result per group that changes, in the
order of `problem.groups`. It gets all options of its row in the catalogue, so it has no defaults of its own.
"""
