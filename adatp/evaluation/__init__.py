"""Measurements that compare methods and settings."""
