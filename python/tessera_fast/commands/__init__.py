"""The commands of `tessera-fast`, a file each: ``add`` declares it, ``_run`` does it."""

from . import (
    bench,
    convert,
    demo,
    distill,
    doctor,
    embed,
    export,
    info,
    mosaic,
    plan,
    probe,
    quicklook,
    repository,
    stac,
    train,
    verify,
)

# as the help lists them
IN_ORDER = (
    embed,
    plan,
    verify,
    quicklook,
    mosaic,
    export,
    stac,
    demo,
    bench,
    convert,
    train,
    distill,
    probe,
    repository,
    info,
    doctor,
)
