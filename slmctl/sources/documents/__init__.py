"""Documents as rows: PDF, DOCX, mails, HTML and plain text, one row a document."""
