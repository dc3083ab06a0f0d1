"""The pages that the package serves outside the admin, one module for each purpose."""
