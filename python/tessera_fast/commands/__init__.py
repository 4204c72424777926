"""The commands of `tessera-fast`, a file each: ``add`` declares it, ``_run`` does it."""

from . import bench, convert, demo, embed, export, info, repository

IN_ORDER = (embed, demo, bench, convert, export, repository, info)  # as the help lists them
