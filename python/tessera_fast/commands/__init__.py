"""The commands of `tessera-fast`, a file each: ``add`` declares it, ``_run`` does it."""

from . import bench, convert, demo, doctor, embed, export, info, plan, repository, verify

# as the help lists them
IN_ORDER = (embed, plan, verify, demo, bench, convert, export, repository, info, doctor)
