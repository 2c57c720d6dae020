"""Drivers: rent or borrow machines. Nothing else knows a provider by name."""
