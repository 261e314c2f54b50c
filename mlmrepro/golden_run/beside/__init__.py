"""What an upgrade can change beside the guide's own path: other arguments, other files, defaults.

One module for each part of the libraries. A probe is a function (bench) -> {name: value}; what it gives is observed
as ``<stage>.beside.<probe>.<name>``. A probe looks at one behaviour in the smallest setting that shows it.
"""
