"""What reads a checkpoint before the first tensor of it is used."""

from mergemoe.checkpoints import finite, validation
from mergemoe.models import layout, supported
from mergemoe.workflow.planning import inspect, model_counts


def look(folder):
    """All that a run, `plan` and `inspect` do with a checkpoint before the first tensor is used."""
    validation.check_checkpoint(folder)
    inspect.inspect_checkpoint(folder)
    model_counts.model_counts.__wrapped__(folder)
    supported.check_architecture(folder)
    layout.describe_layout(folder, digests=False)
    finite.check_finite(folder)
