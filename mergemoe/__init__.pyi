from mergemoe.compressed.compress import compress as compress
from mergemoe.compressed.loading import load as load
from mergemoe.compressed.saving import save as save

__all__ = ["compress", "load", "save"]
