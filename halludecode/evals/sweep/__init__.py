"""Many settings of a strategy: chosen on development pictures, reported on others."""
