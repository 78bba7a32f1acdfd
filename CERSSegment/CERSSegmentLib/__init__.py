"""Parts of the CERS Segment module. Nothing heavy is imported: the work is done in a separate process."""

from . import Paths

Paths.makeImportable()
