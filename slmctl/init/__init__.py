"""Rows of any file or query -> a project: description of the columns,
proposal of a task, and `slmctl.yaml`.
"""
