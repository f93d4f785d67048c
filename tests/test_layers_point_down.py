"""See `test_import_layers`."""

from test_import_layers import test_imports_point_down  # noqa: F401
