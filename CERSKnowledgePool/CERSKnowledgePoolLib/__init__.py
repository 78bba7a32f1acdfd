"""Parts of the CERS Knowledge Pool module."""
