"""Off-path probes: arguments, files and defaults that an upgrade can change but the guide does not use.

One module for each part of the libraries. A probe is a function (bench) -> {name: value}; its values are observed
as ``<stage>.beside.<probe>.<name>``. A probe looks at one behaviour in the smallest setting that shows it.
"""
