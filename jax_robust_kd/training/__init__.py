"""From a config to a trained student."""
