"""Getting data: checked downloads and safe archives."""

from contrastive_core.data.download import fetch, safe_extract

__all__ = ["fetch", "safe_extract"]
