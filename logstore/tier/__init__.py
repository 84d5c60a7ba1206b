"""Sealed segments as files: plain Parquet, on any file system that fsspec knows.

What is where is in the log's catalog (``schema/tier.sql``); here files are written, read and checked.
Needs the extra ``tier``, which is asked for only when a file is touched.
"""
