"""Decisions of people on collected rows: which to look at first, the page, the spreadsheet."""
