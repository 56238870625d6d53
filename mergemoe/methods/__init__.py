"""The methods of `solve`, one file each, loaded by name.

A method module has `merge(problem, **options) -> list[Merged]`: one result per group of several experts, in the
order of `problem.groups`; the options are the keys of its choice in params.yaml.
"""
