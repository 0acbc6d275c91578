"""Review of collected rows by people: order of the rows, session, web page, spreadsheet."""
